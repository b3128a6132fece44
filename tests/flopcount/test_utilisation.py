"""MFU and HFU: right on many devices, never above the peak without an error; devices by name."""

import math
import re

import numpy as np
import pytest

import flopcount as fc
from flopcount.devices import DEVICES, TORCH_NAMES, find_device, given_device, require_utilisation
from flopcount.isoflop.plan import throughput

GPT2 = fc.Decoder(vocab_size=50304, seq_len=1024, num_channels=768, num_layers=12, num_heads=12)
# Per token 72Ld² + 6Ld(n + 1) + 6dV, d = 768, L = 12, n = 1024, V = 50,304.
PER_TOKEN = 72 * 12 * 768**2 + 6 * 12 * 768 * 1025 + 6 * 768 * 50304
STEP = 480 * 1024 * PER_TOKEN  # 3.9228e14 FLOPs
H100 = 989.4e12


def own(flops_per_second):
    return fc.Device("own", {"bf16": fc.Peak(flops_per_second, "measured")})


def test_nano_gpt_on_eight_devices():
    causal = GPT2.flops(batch_size=480)
    assert causal.total == STEP
    utilisation = causal.mfu(seconds=0.41, device="h100", num_devices=8)
    assert utilisation == pytest.approx(STEP / (0.41 * 8 * H100), rel=1e-12)
    assert f"{utilisation:.2%}" == "12.09%"
    # nanoGPT: 6N + 12·L·h·c·n per token, N without positions, 124,337,664 + 47·768 + biases: palm.
    palm = GPT2.flops(convention="palm", batch_size=480)
    n_params = GPT2.params().total - 1024 * 768
    assert palm.per_token == 6 * n_params + 12 * 12 * 768 * 1024
    assert f"{palm.mfu(seconds=0.41, device='h100', num_devices=8):.2%}" == "12.96%"


def test_tokens_per_second_stand_for_seconds():
    count = GPT2.flops(batch_size=480, checkpointing="reentrant")
    step = dict(device="h100", num_devices=8)
    rate = 480 * 1024 / 0.41
    for name in ("mfu", "hfu"):
        of_step = getattr(count, name)(seconds=0.41, **step)
        assert getattr(count, name)(tokens_per_second=rate, **step) == pytest.approx(of_step)
        # Of tokens, the batch size is no matter.
        alone = getattr(GPT2.flops(checkpointing="reentrant"), name)(tokens_per_second=rate, **step)
        assert alone == pytest.approx(of_step)
    # 1,000 tokens/s of PER_TOKEN FLOPs on 2 devices of 1e12.
    share = GPT2.flops().mfu(tokens_per_second=1000, device=own(1e12), num_devices=2)
    assert share == pytest.approx(1000 * PER_TOKEN / 2e12, rel=1e-12)


def test_one_of_seconds_and_tokens_per_second():
    count = GPT2.flops()
    for given in ({}, {"seconds": 1, "tokens_per_second": 1}):
        with pytest.raises(ValueError, match="expected one of the two"):
            count.mfu(device="h100", **given)
    with pytest.raises(ValueError, match="tokens_per_second = 0"):
        count.hfu(device="h100", tokens_per_second=0)
    with pytest.raises(TypeError, match="tokens_per_second = '9'"):
        count.hfu(device="h100", tokens_per_second="9")


@pytest.mark.parametrize("name", ["mfu", "hfu"])
def test_more_than_the_peak_is_an_error_that_says_what_to_check(name):
    model = fc.Decoder(
        vocab_size=50257, seq_len=1024, num_channels=768, num_layers=12, num_heads=12
    )
    with pytest.raises(ValueError, match=r"825,772\.68% of the peak") as caught:
        getattr(model.flops(), name)(seconds=1e-7, device="h100")
    message = str(caught.value)
    assert message.startswith(name.upper())
    for argument in ("seconds", "batch_size", "num_devices", "device", "dtype"):
        assert f"{argument} = " in message
    with pytest.raises(ValueError, match=r"tokens_per_second = 1000000000\.0"):
        getattr(model.flops(), name)(tokens_per_second=1e9, device="h100")


def test_recomputation_alone_can_exceed_the_peak():
    count = GPT2.flops(checkpointing="reentrant")
    all_of_it = count.total / 1e15
    assert count.mfu(seconds=all_of_it, device=own(1e15)) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"HFU = 1\.2"):
        count.hfu(seconds=all_of_it, device=own(1e15))


def test_exactly_the_peak_passes():
    count = fc.Decoder(vocab_size=8, seq_len=1, num_channels=8, num_layers=1, num_heads=1).flops()
    # 72d² + 6d·2 + 6dV = 4608 + 96 + 384.
    assert count.total == 5088
    assert count.mfu(seconds=1, device=own(5088)) == 1
    assert count.mfu(seconds=2, device=own(636), num_devices=4) == 1
    with pytest.raises(ValueError, match=r"100\.02%"):
        count.mfu(seconds=1, device=own(5087))
    # A time that was computed from the peak is rounded, and so is the quotient.
    for rate in (3.0, 0.7, 989.4e12, 1 / 3):
        assert count.mfu(seconds=5088 / rate, device=own(rate)) == pytest.approx(1, rel=1e-15)
    assert require_utilisation("MFU", 1 + 1e-13, "") == 1 + 1e-13
    with pytest.raises(ValueError, match="MFU"):
        require_utilisation("MFU", 1 + 1e-11, "")


def test_of_an_array_the_error_names_the_element():
    widths = np.array([8, 16, 1600])
    count = fc.Decoder(
        vocab_size=8, seq_len=4, num_channels=widths, num_layers=2, num_heads=2
    ).flops()
    limit = own(int(count.total[1]))
    with pytest.raises(ValueError, match=r"MFU\[2\] = "):
        count.mfu(seconds=1, device=limit)
    assert count.mfu(seconds=1, device=own(int(count.total[2]))).max() == 1
    grid = fc.Decoder(
        vocab_size=8, seq_len=np.array([[4], [8]]), num_channels=widths, num_layers=2, num_heads=2
    ).flops()
    with pytest.raises(ValueError, match=r"HFU\[0, 2\] = "):
        grid.hfu(seconds=1, device=limit)
    huge = fc.Decoder(
        vocab_size=8, seq_len=4, num_channels=np.array([2**40, 2**41]), num_layers=2, num_heads=2
    ).flops()
    with pytest.raises(ValueError, match=r"MFU\[1\] = "):
        huge.mfu(tokens_per_second=1, device=own(int(huge.total[0]) / 4))


def test_an_infinite_share_is_an_error():
    with pytest.raises(ValueError, match="MFU = inf"):
        require_utilisation("MFU", math.inf, "")


@pytest.mark.parametrize("share", [1.5, 40])
def test_throughput_of_more_than_the_peak_is_refused_alike(share):
    with pytest.raises(ValueError, match=rf"mfu = {share}.*of the peak.*40 % is given as 0.4"):
        throughput("h100", share)
    assert throughput("h100", 1) == H100


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA B300 SXM6 AC", "b300"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 5090", "rtx-5090"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_devices_by_the_name_that_torch_reports(reported, name):
    assert find_device(reported) is DEVICES[name]


@pytest.mark.parametrize(
    "reported",
    [
        "NVIDIA H100",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H100 NVL ",
        "nvidia h100 nvl",
        "NVIDIA GH200 480GB",
        "NVIDIA A10G",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "h10",
    ],
)
def test_a_part_of_a_name_is_no_device(reported):
    with pytest.raises(ValueError, match=re.escape(f"device = {reported!r}")):
        find_device(reported)


def test_every_reported_name_leads_to_a_known_device():
    assert {*TORCH_NAMES.values()} <= {*DEVICES}
    assert not {*TORCH_NAMES} & {*DEVICES}


def test_rates_are_of_one_device_without_sparsity():
    """Each figure as its document states it: sparse ones halved, a superchip's by its two GPUs."""
    stated = {
        # Blackwell datasheet, per GPU, with sparsity: 10 and 5 PFLOP/s; superchip 20 and 10.
        "gb200": {"fp8": 20e15 / 2 / 2, "bf16": 10e15 / 2 / 2, "fp32": 160e12 / 2},
        # HGX B300: 72 and 36 PFLOP/s with sparsity, of eight.
        "b300": {"fp8": 72e15 / 8 / 2, "bf16": 36e15 / 8 / 2},
        "b200": {"fp8": 9e15 / 2, "bf16": 4.5e15 / 2, "tf32": 2.2e15 / 2},
        "h100-nvl": {"fp8": 3341e12 / 2, "bf16": 1671e12 / 2, "tf32": 835e12 / 2, "fp64": 60e12},
        "h200-nvl": {"fp8": 3341e12 / 2, "bf16": 1671e12 / 2, "tf32": 835e12 / 2, "fp32": 60e12},
        # 304 compute units at 2.1 GHz: 2048 and 4096 FLOPs each per clock.
        "mi300x": {"bf16": 1307.4e12, "fp8": 2614.9e12, "tf32": 653.7e12, "fp64": 163.4e12},
        "mi325x": {"bf16": 1307.4e12, "fp8": 2614.9e12},
        "a10": {"bf16": 125e12, "tf32": 62.5e12, "fp32": 31.2e12},
        "rtx-4090": {"bf16": 330.4e12 / 2, "fp8": 660.6e12 / 2, "fp32": 82.6e12},
        "rtx-5090": {"bf16": 419e12 / 2, "fp8": 838e12 / 2},
        "tpu-v7": {"bf16": 2307e12, "fp8": 4614e12},
    }
    for name, rates in stated.items():
        for dtype, rate in rates.items():
            assert DEVICES[name].peak(dtype).flops_per_second == pytest.approx(rate, rel=1e-12)
    assert DEVICES["mi300x"].peak("bf16").flops_per_second == pytest.approx(
        304 * 2.1e9 * 2048, rel=1e-4
    )
    for device in DEVICES.values():
        assert all(peak.reference for peak in device.peaks.values())


def test_a_given_peak_is_a_device():
    assert GPT2.flops().mfu(1, given_device(2e12), num_devices=3) == pytest.approx(
        1024 * PER_TOKEN / 6e12
    )
    with pytest.raises(ValueError, match="flops_per_second = 0"):
        given_device(0)


# As the documents print them: TB/s, and GB (10^9) or GiB (2^30) of memory.
@pytest.mark.parametrize(
    ("name", "bandwidth", "memory"),
    [
        ("b200", 8.0, 180 * 2**30),
        ("h100", 3.35, 80 * 2**30),
        ("h200", 4.8, 141 * 10**9),
        ("l40s", 0.864, 48 * 10**9),
        ("mi300x", 5.3, 192 * 2**30),
        ("tpu-v4", 1.2, 32 * 2**30),
        ("tpu-v5e", 0.819, 16 * 10**9),
        ("tpu-v5p", 2.765, 95 * 2**30),
        ("tpu-v6e", 1.638, 32 * 2**30),
        ("tpu-v7", 7.38, 192 * 2**30),
    ],
)
def test_bandwidth_and_memory_as_documented(name, bandwidth, memory):
    device = find_device(name)
    assert device.bandwidth.bytes_per_second == pytest.approx(bandwidth * 1e12, rel=1e-12)
    assert device.memory.size_bytes == memory


def test_what_no_document_states_stays_none():
    unstated = {name for name, device in DEVICES.items() if device.bandwidth is None}
    assert unstated == {
        "a10", "a100", "b300", "gb200", "h100-nvl", "h100-pcie", "h200-nvl", "l4", "mi325x",
        "rtx-4090", "rtx-5090", "v100",
    }  # fmt: skip
    sizeless = {name for name, device in DEVICES.items() if device.memory is None}
    assert sizeless == unstated - {"h200-nvl", "mi325x", "rtx-4090", "rtx-5090"}
