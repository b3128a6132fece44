"""Models from Hugging Face configs: :func:`from_hf`.

To add a family, write a :class:`~flopcount.hf.reader.Family` in the module that its kind has (or a
new one, whose ``FAMILIES`` joins those here): what reads each field of a declaration, with the
defaults of the family's own class; the fields without effect; the values that are refused. A field
that no line names is listed by ``print(model)`` under "not looked at".
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flopcount.hf import dense, encoders, experts, hybrid
from flopcount.hf.reader import ABSENT, Config, Family, Reading, resolved, words
from flopcount.sizes import Size, is_array, is_symbolic, quoted, require_choice, require_flag

FAMILIES: dict[str, Family] = {
    **dense.FAMILIES,
    **experts.FAMILIES,
    **hybrid.FAMILIES,
    **encoders.FAMILIES,
}
"""By ``model_type``."""

NESTED = {"gemma3": "gemma3_text", "llama4": "llama4_text"}
"""The ``model_type`` of a ``text_config`` that does not say it, by that of the whole."""

WITHOUT_EFFECT = (
    # What a file is, and how it was written.
    words(
        "model_type architectures _name_or_path name_or_path transformers_version _commit_hash "
        "cache_implementation unk_token_id "
        "torch_dtype dtype _attn_implementation attn_implementation _experts_implementation"
    )
    # What a call returns, and whether it keeps keys and values.
    | words("output_hidden_states output_attentions return_dict use_return_dict use_cache")
    # Tokens, labels and generation.
    | words(
        "bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id is_decoder "
        "decoder_start_token_id forced_bos_token_id forced_eos_token_id tokenizer_class prefix "
        "id2label label2id num_labels problem_type task_specific_params classifier_dropout "
        "finetuning_task summary_type summary_use_proj summary_activation summary_proj_to_labels "
        "summary_first_dropout max_length min_length do_sample early_stopping num_beams "
        "num_beam_groups temperature top_k top_p typical_p repetition_penalty length_penalty "
        "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences "
        "output_scores return_dict_in_generate diversity_penalty exponential_decay_length_penalty "
        "suppress_tokens begin_suppress_tokens remove_invalid_values"
    )
    # Initial values, and dropout, which is not counted; the ε of norms.
    | words(
        "initializer_range init_std layer_norm_epsilon layer_norm_eps rms_norm_eps "
        "attention_dropout hidden_dropout dropout activation_dropout"
    )
    # Angles, which are looked up.
    | words("rope_theta rope_scaling rope_parameters rope_type original_max_position_embeddings")
    # How a network is placed and executed.
    | words(
        "chunk_size_feed_forward torchscript use_bfloat16 tf_legacy_loss gradient_checkpointing "
        "pretraining_tp tie_encoder_decoder tie_last_hidden_states"
    )
)
"""Fields that change neither parameters nor FLOPs in any family."""

ONLY: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": (None, {}),
    "per_layer_config": (None, {}),
}
"""Fields of which these values alone are modelled, unless a family says otherwise."""


def from_hf(
    config: Any, seq_len: Size | None = None, *, target_len: Size | None = None, mtp: bool = False
) -> Any:
    """The model that a Hugging Face config describes, to be counted.

    Nothing is downloaded and no code of the config is executed.

    Args:
        config: A dict, an object with ``to_dict`` such as transformers' own, a path to a
            ``config.json`` or to a folder that has one.
        seq_len: n, positions of a sequence; without it, what needs none works, such as ``params``.
        target_len: Of an encoder-decoder, positions of the decoder.
        mtp: Whether the modules that predict further tokens count, where the config has some.

    Returns:
        A declaration such as :class:`~flopcount.causal_lm.CausalLM`; ``print`` says in plain words
        what was understood, and which fields were not looked at.

    Raises:
        TypeError: If the config is none of these, or a field has the wrong type.
        ValueError: If the ``model_type`` or the head is unknown, a field has a value that is not
            modelled, or there is no such file.

    >>> import flopcount as fc
    >>> llama = fc.from_hf({
    ...     "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
    ...     "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    ...     "num_key_value_heads": 8}, seq_len=8192)
    >>> llama.params().total, llama.flops().per_token
    (8030261248, 51471187968)

    """
    whole = fields_of(config)
    for name, value in whole.items():
        _refuse_arrays(str(name), value)
    fields, left_out = _text_of(whole)
    model_type = fields.get("model_type")
    if model_type is None:
        raise ValueError(
            f"config without model_type: expected one of {', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[require_choice("model_type", model_type, sorted(FAMILIES))]
    options = {"target_len": target_len, "mtp": require_flag("mtp", mtp)}
    for name, value in options.items():
        if name not in family.options and value is not None and value is not False:
            raise ValueError(
                f"{name} = {quoted(value)} with model_type = {model_type!r}: it has none"
            )
    read = Config(_flat(fields, family.nested), options)
    head = _head(whole, family, nested=whole is not fields)
    for name, allowed in (ONLY | dict(family.only)).items():
        _, value = read.given(name)
        if value is not ABSENT and value not in allowed:
            raise ValueError(
                f"{name} = {quoted(value)} of model_type {model_type!r} is not modelled: "
                f"expected {' or '.join(map(repr, allowed))}"
            )
    try:
        values = {name: resolved(take, read) for name, take in family.fields.items()}
    except TypeError as error:
        # A symbol is a size like others, but where a family compares it or counts up to it.
        symbols = [name for name in sorted(read.read) if is_symbolic(read.fields.get(name))]
        if not symbols or any(name in str(error) for name in symbols):
            raise
        named = ", ".join(f"{name} = {quoted(read.fields[name])}" for name in symbols)
        raise TypeError(
            f"{named}: expected integers of model_type {model_type!r}, which computes with them"
        ) from error
    remarks = tuple(said for remark in family.remarks if (said := remark(read)))
    unknown = sorted(
        name
        for name in set(read.fields) - read.read - family.without_effect
        if name.rpartition(".")[-1] not in WITHOUT_EFFECT
    )
    reading = Reading(model_type, head, left_out, tuple(unknown), remarks)
    return family.declaration(**values, seq_len=seq_len, reading=reading)


def fields_of(config: Any) -> dict[str, Any]:
    """The fields of a config as a dict, whichever way it is given.

    Raises:
        TypeError: If it is nothing that has fields.
        ValueError: If there is no such file, or it holds no object.
    """
    if isinstance(config, Mapping):
        return dict(config)
    if hasattr(config, "to_dict") and not isinstance(config, type):
        return dict(config.to_dict())
    if not isinstance(config, str | os.PathLike):
        raise TypeError(
            f"config = {quoted(config)} is a {type(config).__name__}: expected a dict, an object "
            "with to_dict, or the path of a config.json or of a folder that has one"
        )
    path = file_of(config)
    if path is None:
        raise ValueError(
            f"config = {quoted(os.fspath(config))}: there is no such file; nothing is downloaded, "
            "so expected the path of a config.json or of a folder that has one"
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected a JSON object, not {quoted(fields)}")
    return fields


def file_of(path: str | os.PathLike[str]) -> Path | None:
    """The file that is meant: a file, or a folder's ``config.json``; None if there is none."""
    try:
        file = Path(path)
        if file.is_dir():
            file = file / "config.json"
        return file if file.is_file() else None
    except (OSError, ValueError):  # no system can have a file of this name
        return None


def _refuse_arrays(name: str, value: Any) -> None:
    """Raise unless a field is of one model, whatever it nests: arrays differ from it and agree."""
    if is_array(value) or getattr(value, "ndim", None):
        raise TypeError(
            f"{name} = {quoted(value)}: expected what JSON has; arrays are for the model that the "
            "config describes, by dataclasses.replace"
        )
    if isinstance(value, Mapping):
        for inner, entry in value.items():
            _refuse_arrays(f"{name}.{inner}", entry)
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _refuse_arrays(f"{name}[{index}]", entry)


def _flat(fields: dict[str, Any], nested: tuple[str, ...]) -> dict[str, Any]:
    """Fields, with those of nested objects beside them under dotted names."""
    flat = dict(fields)
    for outer in nested:
        if isinstance(inner := flat.get(outer), Mapping):
            del flat[outer]
            flat |= {f"{outer}.{name}": value for name, value in inner.items()}
    return flat


def _text_of(whole: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields of the text model, and the names of the other parts' configs.

    Raises:
        ValueError: If the whole and its text say different things of the output layer.
    """
    outer = whole.get("model_type")
    nested = NESTED.get(outer) if isinstance(outer, str) else None
    text = whole.get("text_config")
    if text is None and nested is not None:
        text = {}
    if not isinstance(text, Mapping):
        return whole, ()
    name = "tie_word_embeddings"
    fields = {name: whole[name]} if whole.get(name) is not None else {}
    fields |= {"model_type": nested} | {n: v for n, v in text.items() if v is not None or n != name}
    if fields["model_type"] is None:
        fields["model_type"] = nested
    if whole.get(name) is not None and fields[name] != whole[name]:
        raise ValueError(
            f"{name} = {quoted(whole[name])} with {quoted(fields[name])} in text_config: expected "
            "one value"
        )
    parts = (n for n in whole if n.endswith("_config") and n != "text_config" and whole[n])
    return fields, tuple(sorted(parts))


def _head(fields: Mapping[str, Any], family: Family, nested: bool) -> str:
    """The architecture's name, if it is one that is counted.

    Raises:
        ValueError: If it is not.
    """
    given = fields.get("architectures")
    if given is None or (isinstance(given, list | tuple) and not given):
        return family.heads[0]
    head = given[0] if isinstance(given, list | tuple) else given
    if isinstance(head, str) and (
        head in family.heads or (nested and head.endswith("ForConditionalGeneration"))
    ):
        return head
    raise ValueError(
        f"architectures = {quoted(given)}: expected one of "
        f"{', '.join(map(repr, family.heads))} as the first, whose head is counted"
    )
