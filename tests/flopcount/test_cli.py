"""Commands print what their functions return, and refuse bad input in one line."""

import dataclasses
import inspect
import json

import pytest

import flopcount as fc
from flopcount import cli
from flopcount.cli import COMMANDS, main, with_config
from flopcount.isoflop.plan import Search

PERCEIVER = [
    "perceiver-ar",
    "--vocab-size",
    "262",
    "--num-latents",
    "512",
    "--num-prefix",
    "3584",
    "--num-channels",
    "512",
    "--num-layers",
    "9",
    "--prefix-dropout",
    "0.5",
]
DECODER = [
    "decoder",
    "--vocab-size",
    "262",
    "--seq-len",
    "64",
    "--num-channels",
    "16",
    "--num-layers",
    "2",
    "--num-heads",
    "2",
]
MODEL = fc.PerceiverAR(
    vocab_size=262, num_latents=512, num_prefix=3584, num_channels=512, num_layers=9,
    prefix_dropout=0.5,
)  # fmt: skip


def test_count_prints_the_table(capsys):
    assert main(["count", *PERCEIVER]) == 0
    assert capsys.readouterr().out.strip() == str(MODEL.flops()).strip()


def test_count_as_json(capsys):
    assert main(["count", *PERCEIVER, "--level", "dense", "--batch-size", "80", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    dense = MODEL.flops(level="dense", batch_size=80)
    assert printed["whole"]["total"] == dense.total
    assert sum(term["total"] for term in printed["terms"]) == dense.total
    assert printed["params"]["total"] == MODEL.params().total


def test_count_with_everything(capsys):
    arguments = "--checkpointing reentrant --params --elementwise --seconds 0.1 --device h200"
    assert main(["count", *PERCEIVER, *arguments.split()]) == 0
    out = capsys.readouterr().out
    for expected in ("recompute", "MFU", "HFU", "prefix positions", "softmax"):
        assert expected in out


NANO_GPT = [
    "count", "decoder", "--vocab-size", "50304", "--seq-len", "1024", "--num-channels", "768",
    "--num-layers", "12", "--num-heads", "12",
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--batch-size 480 --seconds 0.41 --device h100 --num-devices 8", "MFU 12.09% of the bf16"),
        (
            "--batch-size 480 --seconds 0.41 --device h100 --num-devices 8 --convention palm",
            "MFU 12.96% of the bf16 peak of h100 × 8",
        ),
        # 480·1024/0.41 tokens/s
        (
            "--tokens-per-second 1198829.27 --peak-flops 989.4e12 --num-devices 8",
            "MFU 12.09% of the peak of 9.894e+14 × 8",
        ),
        ("--tokens-per-second 1e5 --device h100", "MFU 8.07% of the bf16 peak of h100"),
        # Half of it, at twice the rate.
        ("--tokens-per-second 1e5 --device h100 --dtype fp8", "HFU 4.03% of the fp8 peak of h100"),
    ],
)
def test_utilisation_of_a_run(capsys, arguments, expected):
    assert main([*NANO_GPT, *arguments.split()]) == 0
    assert expected in capsys.readouterr().out


def test_utilisation_by_the_name_that_torch_reports(capsys):
    arguments = ["--tokens-per-second", "1e5", "--device", "NVIDIA H100 NVL", "--json"]
    assert main([*NANO_GPT, *arguments]) == 0
    gpt2 = fc.Decoder(vocab_size=50304, seq_len=1024, num_channels=768, num_layers=12, num_heads=12)
    expected = gpt2.flops().mfu(tokens_per_second=1e5, device="h100-nvl")
    assert json.loads(capsys.readouterr().out)["mfu"] == expected


LLAMA = {
    "model_type": "llama", "vocab_size": 199, "hidden_size": 24, "intermediate_size": 40,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "zebra": 1,
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("spelling", [["hf", "config.json"], ["config.json"], ["hf", ""], [""]])
def test_a_config_is_counted(capsys, config, spelling):
    *hf, name = spelling
    path, model = str(config / name), fc.from_hf(LLAMA, 16)
    assert main(["count", *hf, path, "--seq-len", "16", "--level", "dense"]) == 0
    assert capsys.readouterr().out == f"{model}\n\n{model.flops('dense')}\n"
    assert main(["count", *hf, path, "--seq-len", "16", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["whole"]["total"] == model.flops().total
    assert printed["model"]["config"]["not_looked_at"] == ["zebra"]
    assert main(["params", *hf, path]) == 0
    model = fc.from_hf(LLAMA)
    assert capsys.readouterr().out == f"{model}\n\n{model.params()}\n"
    assert main(["compare", *hf, path, "--seq-len", "16"]) == 0
    assert capsys.readouterr().out.strip() == str(fc.compare(fc.from_hf(LLAMA, 16))).strip()
    assert main(["explain", *hf, path, "--level", "dense"]) == 0
    explained = capsys.readouterr().out
    assert explained.strip() == str(fc.explain(fc.from_hf(LLAMA), "dense")).strip()
    assert "d channels = 24" in explained


@pytest.mark.parametrize("name", ["config.jso", "confg.json", "gpt-2.5", "a/b", "."])
def test_a_file_that_is_not_there_is_named(capsys, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", name]) == 2
    assert f"config = '{name}': there is no such file" in capsys.readouterr().err


def test_what_is_there_is_read_by_any_name_but_an_architectures(capsys, monkeypatch, config):
    monkeypatch.chdir(config)
    (config / "llama").mkdir()
    for name in ("sizes", "llama/config.json"):
        (config / name).write_text(json.dumps(LLAMA), encoding="utf-8")
    assert main(["params", "sizes"]) == 0
    read = capsys.readouterr().out
    assert main(["params", "./llama"]) == 0
    assert capsys.readouterr().out == read
    assert with_config(["params", "llama"]) == ["params", "llama"]


def test_a_config_without_positions_is_refused_in_a_line(capsys, config):
    assert main(["count", str(config)]) == 2
    assert "--seq-len 8192" in capsys.readouterr().err
    assert main(["count", str(config), "--seq-len", "8", "--mtp"]) == 2
    assert "mtp = True with model_type = 'llama'" in capsys.readouterr().err


def test_params(capsys):
    assert main(["params", *DECODER]) == 0
    model = fc.Decoder(vocab_size=262, seq_len=64, num_channels=16, num_layers=2, num_heads=2)
    assert capsys.readouterr().out == f"{model.params()}\n"
    assert main(["params", *DECODER, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["total"] == model.params().total
    assert printed["model"]["architecture"] == "Decoder"


def test_count_of_fine_tuning(capsys):
    options = ["--trainable", "*norm", "--lora-rank", "2", "--lora-targets", "query", "mlp *",
               "--frozen-layers", "1", "--checkpointing", "non-reentrant",
               "--recompute", "attention core"]  # fmt: skip
    assert main(["count", *DECODER, *options, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    tuning = fc.FineTuning(
        trainable="*norm", lora_rank=2, lora_targets=("query", "mlp *"), frozen_layers=1
    )
    model = fc.Decoder(vocab_size=262, seq_len=64, num_channels=16, num_layers=2, num_heads=2)
    again = dict(checkpointing="non-reentrant", recompute="attention core")
    count = model.flops(tuning=tuning, **again)
    assert printed["whole"]["total"] == count.total
    assert printed["whole"]["recompute"] == count.recompute > 0
    assert printed["params"]["trainable"] == model.params(tuning).trainable
    assert printed["tuning"]["lora_targets"] == ["query", "mlp *"]
    tiles = [word for name in ("forward", "key-value", "query")
             for word in (f"--tiling.{name}", "16", "16")]  # fmt: skip
    assert main(["count", *DECODER, *options[:-4], "--level", "executed", *tiles]) == 0
    assert "trained: *norm; LoRA of rank 2 beside query, mlp *" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"flopcount {fc.__version__}\n"


ANSWERING = [
    "llama", "--vocab-size", "11", "--seq-len", "1", "--num-channels", "8", "--num-layers", "2",
    "--num-heads", "2", "--intermediate-size", "10",
]  # fmt: skip
ASKED = ["--prompt-len", "6", "--new-tokens", "4", "--batch-size", "2"]


def test_generate(capsys):
    assert main(["generate", *ANSWERING, *ASKED, "--level", "dense", "--chunk", "4"]) == 0
    out = capsys.readouterr().out
    model = fc.Llama(vocab_size=11, seq_len=1, num_channels=8, num_layers=2, num_heads=2,
                     intermediate_size=10)  # fmt: skip
    read = model.prefill(6, "dense", batch_size=2, chunk=4)
    written = model.decode(3, "dense", cached=6, batch_size=2)
    assert f"the prompt {read.total:,}, the tokens behind it {written.total:,}" in out
    assert str(model.generate(6, 4, "dense", batch_size=2, chunk=4)) in out
    assert str(model.cache(9, batch_size=2)) in out


def test_generate_as_json(capsys):
    assert main(["generate", *PERCEIVER, *ASKED, "--prompt-latents", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["generate"]["whole"]["total"] == MODEL.generate(6, 4, batch_size=2).total
    assert printed["prefill"]["request"] == "prefill of 6"
    # Five positions of prefix, then a latent of the prompt and three tokens.
    assert printed["cache"]["elements"] == MODEL.cache(9, batch_size=2, num_latents=4).elements


@pytest.mark.parametrize("command", ["count", "compare"])
def test_json_says_what_was_counted(capsys, command):
    assert main([command, *PERCEIVER, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["version"] == fc.__version__
    sizes = dict(printed["model"])
    assert sizes.pop("architecture") == "PerceiverAR"
    assert fc.PerceiverAR(**sizes) == MODEL
    assert (sizes["num_prefix"], sizes["prefix_dropout"]) == (3584, 0.5)


def test_count_of_a_decoder_by_a_convention(capsys):
    assert main(["count", *DECODER, "--convention", "palm", "--no-training", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    model = fc.Decoder(vocab_size=262, seq_len=64, num_channels=16, num_layers=2, num_heads=2)
    assert printed["whole"]["total"] == model.flops(convention="palm", training=False).total


GPT2 = [
    "decoder",
    "--vocab-size",
    "50257",
    "--seq-len",
    "1024",
    "--num-channels",
    "768",
    "--num-layers",
    "12",
    "--num-heads",
    "12",
]


def test_compare_optimum(capsys, tmp_path):
    gpt2 = fc.Decoder(vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12, num_heads=12)
    found = fc.compare_optima(gpt2, 1e19)
    assert main(["compare", *GPT2, "--optimum", "1e19"]) == 0
    out = capsys.readouterr().out
    assert out.strip() == str(found).strip()
    assert main(["compare", *GPT2, "--optimum", "1e19", "--part", "self", "--json"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert given["part"] == "self"
    rows = {row["name"]: row["numbers"] for row in given["rows"]}
    assert rows["hf-trainer"]["n_moved"] < -0.1
    assert rows["nanotron"] is None
    law = tmp_path / "law.json"
    numbers = {"e": 1, "a": 100, "b": 100, "alpha": 0.5, "beta": 0.5, "source": "own"}
    law.write_text(json.dumps({"surface": numbers}))
    assert main(["compare", *GPT2, "--optimum", "1e19", "--law", str(law)]) == 0
    assert "law: own" in capsys.readouterr().out


def test_compare(capsys):
    assert main(["compare", *PERCEIVER]) == 0
    assert capsys.readouterr().out.strip() == str(fc.compare(MODEL)).strip()
    assert main(["compare", *PERCEIVER, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["name"]: row["total"] for row in rows}["kaplan"] == "not covered"


@pytest.mark.parametrize("architecture", ["perceiver-ar", "decoder"])
def test_explain(capsys, architecture):
    assert main(["explain", "--architecture", architecture]) == 0
    assert "2*B*V*d*n" in capsys.readouterr().out
    assert main(["explain", "--architecture", architecture, "--latex"]) == 0
    assert "2 B V d n" in capsys.readouterr().out
    assert main(["explain", "--architecture", architecture, "--convention", "6n", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["elementwise"] == []


TILES = "--tiling.forward 128 64 --tiling.key-value 32 64 --tiling.query 128 64"
TILING = fc.Tiling(forward=(128, 64), key_value=(32, 64), query=(128, 64))


def test_count_of_what_kernels_execute(capsys):
    command = ["count", *PERCEIVER, "--level", "executed", *TILES.split(), "--batch-size", "80"]
    executed = MODEL.executed(TILING, batch_size=80)
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(executed).strip()
    assert main([*command, "--json", "--seconds", "0.1", "--device", "h200"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["whole"]["total"] == executed.total
    assert printed["hfu"] == executed.hfu(0.1, "h200")
    assert "mfu" not in printed
    assert main([*command, "--tiling.key-value-products", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"]["total"] > executed.total
    assert main([*command, "--tilings", "hybrid=64x32,32x64,128x64", "--json"]) == 0
    hybrid = fc.Tiling(forward=(64, 32), key_value=(32, 64), query=(128, 64))
    mixed = MODEL.executed(TILING, tilings={"hybrid": hybrid}, batch_size=80)
    assert json.loads(capsys.readouterr().out)["whole"]["total"] == mixed.total


def test_explain_what_kernels_execute(capsys):
    command = ["explain", "--level", "executed"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "ceiling(k/J_f)" in out
    assert "a_f·J_f × J_f" in out
    assert main([*command, "--latex", "--architecture", "decoder"]) == 0
    assert r"\left\lceil{\frac{n}{M_{kv}}}\right\rceil" in capsys.readouterr().out
    assert main([*command, *TILES.split(), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (scores,) = [f for f in printed["matmuls"] if (f["part"], f["term"]) == ("cross", "scores")]
    # 2 · B · h · ⌈n/128⌉ · ⌈k/64⌉ tiles of 128 · 64 pairs, each at 16 · ⌈c/16⌉ channels.
    flops = "262144*B*h*ceiling(k/64)*ceiling(n/128)*ceiling(d/(16*h))"
    assert scores["text"] == flops
    assert {f["term"] for f in printed["backward"]} == {"scores", "values"}
    assert main(["explain", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["backward"] == []


def test_article(capsys):
    assert main(["article"]) == 0
    assert "31421" in capsys.readouterr().out
    assert main(["article", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["laws"]["approach 1"].startswith("N_opt = 0.0877")


PLAN = [
    "plan", "--vocab-size", "32000", "--num-latents", "512", "--batch-size", "80",
    "--num-prefix", "1536",
]  # fmt: skip
TIMED = ["--device", "h100", "--mfu", "0.4"]


def test_plan(capsys):
    article = ["--prefix-dropout", "0.5", "--convention", "article", "--part", "self"]
    assert main([*PLAN, "--budgets", "5.78e17", *article]) == 0
    assert "7.32" in capsys.readouterr().out
    assert main([*PLAN, "--gpu-hours", "1", "8", "--device", "h200", "--mfu", "0.4", "--json"]) == 0
    families = json.loads(capsys.readouterr().out)["families"]
    assert families[0]["budget"] == pytest.approx(3600 * 0.4 * 989.4e12)
    assert families[1]["budget"] == pytest.approx(8 * families[0]["budget"])
    # The hours come back, to within a step.
    assert families[0]["proposals"][0]["seconds"] == pytest.approx(3600, rel=1e-3)


def test_options_of_a_search_have_one_home():
    fields = {field.name: field.default for field in dataclasses.fields(Search)}
    options = {field.name: field.default for field in dataclasses.fields(cli.SearchOptions)}
    assert options == fields
    assert not fields.keys() & inspect.signature(cli.plan).parameters.keys()


def test_integers_are_written_as_budgets_are(capsys):
    command = [*PLAN, "--budgets", "1e18", "--json", "--corpus-tokens"]
    for tokens in ("30e9", "30000000000", "3e10", "30_000_000_000"):
        assert main([*command, tokens]) == 0
        proposals = json.loads(capsys.readouterr().out)["families"][0]["proposals"]
        assert proposals[0]["epochs"] == proposals[0]["trained_tokens"] / 30_000_000_000
    assert main(["count", *DECODER, "--vocab-size", "32e3", "--batch-size", "1e3", "--json"]) == 0
    model = fc.Decoder(vocab_size=32_000, seq_len=64, num_channels=16, num_layers=2, num_heads=2)
    printed = json.loads(capsys.readouterr().out)
    assert printed["whole"]["total"] == model.flops(batch_size=1000).total
    with pytest.raises(SystemExit):
        main([*command, "1.5"])
    assert "expected an integer" in capsys.readouterr().err


def test_only_public_names_are_listed():
    assert dir(fc) == sorted([*fc.__all__, "testing", "torch"])  # these two need an extra
    assert all(getattr(fc, name) is not None for name in fc.__all__)


def test_plan_prints_the_articles_steps(capsys):
    budget = 282_335_232 * 50_000 * 80 * 512
    arguments = f"--budgets {budget} --convention article --part self --prefix-dropout 0.5"
    shapes = "--shapes 512 9 624 11 728 13 --by-convention"
    assert main([*PLAN, *arguments.split(), *shapes.split()]) == 0
    out = capsys.readouterr().out
    assert all(steps in out for steps in ("50,000", "31,421", "21,231"))
    assert "counted in every way" in out


def test_a_fit_is_the_next_plans_prior(capsys, tmp_path, runs):
    for approach in ("profiles", "surface"):
        arguments = ["fit", runs, "--loss", "validation_loss", "--approach", approach, "--json"]
        assert main(arguments) == 0
        fit = capsys.readouterr().out
        path = tmp_path / f"{approach}.json"
        path.write_text(fit)
        assert main([*PLAN, "--budgets", "1e20", "--law", str(path), "--json"]) == 0
        planned = json.loads(capsys.readouterr().out)
        assert planned["law"] == json.loads(fit)["surface" if approach == "surface" else "law"]


@pytest.fixture
def runs(tmp_path):
    """Noise-free runs on the surface L = 1.7 + 400/N^0.34 + 400/D^0.28, two losses a row."""
    path = tmp_path / "runs.csv"
    rows = ["budget,parameters,tokens,flops,train_loss,validation_loss"]
    for budget in (1e19, 1e20, 1e21):
        for size in (1e8, 2e8, 4e8, 8e8, 16e8, 32e8):
            tokens = budget / 6 / size
            loss = 1.7 + 400 / size**0.34 + 400 / tokens**0.28
            rows.append(f"{budget},{size},{tokens},{budget},{loss - 0.1},{loss}")
    path.write_text("\n".join(rows))
    return str(path)


@pytest.mark.parametrize("approach", ["profiles", "surface"])
def test_fit(capsys, runs, approach):
    arguments = ["fit", runs, "--loss", "validation_loss", "--approach", approach]
    assert main([*arguments, "--predict", "1e20"]) == 0
    out = capsys.readouterr().out
    assert "Optimum at" in out
    assert "no intervals" in out
    assert main([*arguments, "--num-bootstrap", "2"]) == 0
    assert "no intervals" not in capsys.readouterr().out
    assert main([*arguments, "--predict", "1e20", "1e22", "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)["predictions"]
    # N_opt = G·(C/6)^(β/(α + β)) with G = (αA/(βB))^(1/(α + β)), α = 0.34, β = 0.28, A = B.
    exact = (0.34 / 0.28) ** (1 / 0.62) * (1e20 / 6) ** (0.28 / 0.62)
    tolerance = 0.1 if approach == "profiles" else 1e-3
    assert predictions[0]["params"] == pytest.approx(exact, rel=tolerance)


def test_fit_of_optima(capsys, tmp_path):
    path = tmp_path / "optima.tsv"
    path.write_text("set\tN\tC\tD\na\t3M\t1e12\t2M\na\t6M\t4e12\t4M\nb\t1\t1\t1\n")
    arguments = ["fit", str(path), "--approach", "power-law", "--where", "set=a"]
    assert main([*arguments, "--a", "0.5", "--b", "0.5", "--predict", "16e12"]) == 0
    out = capsys.readouterr().out
    assert "given" in out
    assert "1.2e+07" in out
    assert "2 of 3 rows with set = a" in out


def test_fit_of_training_curves(capsys, tmp_path):
    path = tmp_path / "curves.csv"
    rows = ["run,N,C,loss"]
    for size in (1e6, 2e6, 4e6, 8e6, 16e6):
        for tokens in (1e6, 2e6, 4e6, 8e6, 16e6, 32e6, 64e6, 128e6, 256e6, 512e6):
            loss = 1.7 + 400 / size**0.34 + 400 / tokens**0.28
            rows.append(f"{size:g},{size},{6 * size * tokens},{loss}")
    path.write_text("\n".join(rows))
    assert main(["fit", str(path), "--approach", "curves"]) == 0
    assert "pproach 1" in capsys.readouterr().out


def test_devices(capsys):
    assert main(["devices"]) == 0
    out = capsys.readouterr().out
    assert "989.4" in out
    assert "Device(name" in out
    assert "3.35" in out
    assert "85.9" in out  # 80·2^30 bytes
    assert "empty: no document" in out
    assert main(["devices", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["h200"]["bandwidth"]["bytes_per_second"] == 4.8e12
    assert listed["h200"]["memory"]["size_bytes"] == 141 * 10**9
    assert "TensorRT-LLM" in listed["h200"]["memory"]["reference"]
    assert listed["a100"]["bandwidth"] is None  # 40 and 80 GB, each with a rate of its own
    peaks = listed["h200"]["peaks"]
    assert peaks["bf16"]["flops_per_second"] == 989.4e12
    assert "datasheet" in peaks["bf16"]["reference"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["count", *PERCEIVER, "--num-heads", "7"], "num_channels = 512 is not divisible"),
        (["count", "hf", "meta-llama/Llama-3.1-8B"], "nothing is downloaded, so expected the path"),
        (["count", "meta-llama/Llama-3.1-8B"], "nothing is downloaded, so expected the path"),
        (["params", "nowhere.json"], "config = 'nowhere.json': there is no such file"),
        (["explain", "nowhere.json"], "config = 'nowhere.json': there is no such file"),
        (["count", *PERCEIVER, "--convention", "gpt"], "convention = 'gpt'"),
        (["count", *PERCEIVER, "--seconds", "1"], "--seconds: expected one of --seconds and --tok"),
        (["count", *PERCEIVER, "--device", "h100"], "--device: expected one of --seconds and"),
        (["count", *PERCEIVER, "--peak-flops", "1e15"], "--peak-flops: expected one of"),
        (["count", *PERCEIVER, "--num-devices", "8"], "--num-devices: expected one of --seconds"),
        (["compare", *PERCEIVER, "--part", "self"], "--part without --optimum: it would do"),
        (["compare", *PERCEIVER, "--law", "x.json"], "--law or --part without --optimum"),
        (["compare", *PERCEIVER, "--no-training", "--optimum", "1e18"], "expected one of the two"),
        (
            ["compare", *PERCEIVER, "--optimum", "1e18", "--law", "chinchilla-1"],
            "expected a flopcount.isoflop.laws.LossSurface",
        ),
        (["count", *PERCEIVER, "--dtype", "fp8"], "--dtype: expected one of --seconds"),
        (
            ["count", *PERCEIVER, "--seconds", "1", "--tokens-per-second", "9", "--device", "h100"],
            "--seconds, --tokens-per-second, --device: expected one of",
        ),
        (
            ["count", *PERCEIVER, "--seconds", "1", "--device", "h100", "--peak-flops", "1e15"],
            "--seconds, --device, --peak-flops: expected one of",
        ),
        (
            ["count", *PERCEIVER, "--seconds", "1", "--peak-flops", "1e15", "--dtype", "fp8"],
            "--dtype with --peak-flops",
        ),
        (
            ["count", *PERCEIVER, "--seconds", "1", "--device", "h100", "--num-devices", "0"],
            "num_devices = 0",
        ),
        (["count", *PERCEIVER, "--json", "--params"], "--params or --elementwise with --json"),
        (["count", *PERCEIVER, "--json", "--elementwise"], "--params or --elementwise with --json"),
        (["explain", "--json", "--latex"], "--latex with --json"),
        (
            ["count", *PERCEIVER, "--seconds", "1e-7", "--device", "h100"],
            "of the peak: expected at most 100%; check that seconds = 1e-07",
        ),
        (["count", *PERCEIVER, "--seconds", "1", "--device", "x"], "device = 'x'"),
        (["count", *PERCEIVER, "--batch-size", "-1"], "batch_size = -1"),
        (["count", *PERCEIVER, "--level", "executed"], "expected --tiling.forward, --tiling.key-v"),
        (["count", *PERCEIVER, *TILES.split()], "with level = None: expected --level executed"),
        (
            ["count", *PERCEIVER, "--level", "executed", *TILES.split()[:3]],
            "missing: expected --tiling.forward, --tiling.key-value and --tiling.query",
        ),
        (
            [
                "count",
                *PERCEIVER,
                "--level",
                "executed",
                *TILES.split(),
                "--tiling.query",
                "64",
                "9",
            ],
            "query = (64, 9): expected the block of queries to be a multiple",
        ),
        (
            ["count", *PERCEIVER, "--level", "executed", *TILES.split(), "--convention", "palm"],
            "expected a convention alone",
        ),
        (["explain", *TILES.split()], "expected --level executed"),
        (["explain", "--tiling.head-dim-multiple", "8"], "expected --level executed"),
        (
            ["count", *PERCEIVER, "--level", "executed", "--tilings", "hybrid=64x64,64x64,64x64"],
            "--tiling options are missing: expected --tiling.forward",
        ),
        (["compare", *DECODER, "--num-layers", "0"], "num_layers = 0"),
        (["fit", "no-such-file.csv"], "no-such-file.csv"),
        (["fit", "x.csv", "--a", "0.5"], "expected --approach 'power-law'"),
        (["fit", "x.csv", "--where", "a"], "expected HEADING=VALUE"),
        (PLAN, "budgets, gpu_hours: expected one of the two"),
        ([*PLAN, "--gpu-hours", "1"], "expected both, and so with gpu_hours"),
        ([*PLAN, "--budgets", "1e18", "--law", "kaplan"], "law = 'kaplan'"),
        ([*PLAN, "--budgets", "1e18", "--law", "no-such-fit.json"], "No such file"),
        ([*PLAN, "--budgets", "-1"], "budget"),
        ([*PLAN, "--budgets", "1"], "budget = 1.0: expected at least one step's FLOPs"),
        ([*PLAN, "--budgets", "1e18", "--by-convention", "--json"], "by_convention with json"),
        (
            [*PLAN, "--budgets", "1e18", *TIMED, "--flops-per-second", "1e14"],
            "device = 'h100' with flops_per_second = 100000000000000.0: expected one",
        ),
        ([*PLAN, "--budgets", "1e18", "--num-devices", "8"], "num_devices = 8 without flops_per_s"),
        (
            ["fit", "x", "--objective", "variable-projection"],
            "--objective with --approach profiles",
        ),
        (
            ["fit", "x", "--approach", "surface", "--budgets", "1e18"],
            "--budgets with --approach su",
        ),
        (
            ["fit", "x", "--approach", "curves", "--drop-highest", "5", "--budget", "C"],
            "--budget, --drop-highest with --approach curves: it would do nothing",
        ),
        (["fit", "x", "--run", "name"], "--run with --approach profiles: it would do nothing"),
        (["fit", "x", "--seed", "1"], "--seed without --num-bootstrap: it would do nothing"),
    ],
)
def test_bad_values_are_one_line(capsys, arguments, message):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [["count", *DECODER, "--seq-len", "x"], ["article", "-z"]],
)
def test_unknown_words_exit_with_usage(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "--json" in out or "{perceiver-ar,decoder}" in out or command == "explore"  # a page
