"""How fields of a config are read: small functions of a :class:`Config` that families list.

Each says which field it takes, under which names, and what it is where it is absent; every name
that is read is remembered, so that what nobody looked at can be said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from flopcount.sizes import Size, quoted, require_choice, require_flag, require_size

ABSENT = object()
MOST_LAYERS = 100_000
"""Of layers that differ, each of which has a word of its own."""


class Config:
    """The fields of a config, and which of them have been read.

    Attributes:
        fields: What the config says, by name.
        options: What the caller of :func:`flopcount.from_hf` said beside it.
        read: Names that have been read.
    """

    def __init__(self, fields: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self.fields = fields
        self.options = options
        self.read: set[str] = set()

    def given(self, *names: str) -> tuple[str, Any]:
        """The field that has one of these names, and its value; ``ABSENT`` if there is none.

        Raises:
            ValueError: If two names of the same field have different values.
        """
        self.read.update(names)
        present = {name: self.fields[name] for name in names if name in self.fields}
        if not present:
            return names[0], ABSENT
        stated = {name: value for name, value in present.items() if value is not None} or present
        name, value = next(iter(stated.items()))
        for other, differs in stated.items():
            if differs != value:
                raise ValueError(
                    f"{name} = {quoted(value)} and {other} = {quoted(differs)}: expected one "
                    "value, since they are names of the same field"
                )
        return name, value


Take: TypeAlias = Callable[[Config], Any]
"""What reads something of a config."""


def resolved(value: Any, config: Config) -> Any:
    """A constant as it is; what a function of the config returns."""
    return value(config) if callable(value) else value


def size(*names: str, default: Any, null: Any = ABSENT, minimum: int = 1) -> Take:
    """A field that is a size.

    Args:
        names: The field's name, and others that it goes by.
        default: Its value where it is absent: a constant, or a function of the config.
        null: Its value where it is ``null``; the default unless given.
        minimum: The smallest value allowed.
    """

    def take(config: Config) -> Size:
        name, value = config.given(*names)
        if value is ABSENT or (value is None and null is ABSENT):
            return resolved(default, config)
        if value is None:
            return resolved(null, config)
        return require_size(name, value, minimum)

    return take


def flag(*names: str, default: Any) -> Take:
    """A field that is true or false; ``null`` as if it were absent."""

    def take(config: Config) -> bool:
        name, value = config.given(*names)
        if value is ABSENT or value is None:
            return bool(resolved(default, config))
        return require_flag(name, value)

    return take


def number(*names: str, default: Any) -> Take:
    """A field that is a number; ``null`` as if it were absent."""

    def take(config: Config) -> Any:
        name, value = config.given(*names)
        if value is ABSENT or value is None:
            return resolved(default, config)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} = {quoted(value)}: expected a number")
        return value

    return take


def word(*names: str, default: str, known: Mapping[str, Any]) -> Take:
    """A field that is one of some words, each of which stands for something."""

    def take(config: Config) -> Any:
        name, value = config.given(*names)
        if value is ABSENT or value is None:
            value = default
        return known[require_choice(name, value, known)]

    return take


def is_given(*names: str, default: Any = None) -> Take:
    """Whether a field is neither absent nor ``null``, such as a cap that acts where it is given."""

    def take(config: Config) -> bool:
        _, value = config.given(*names)
        return (default if value is ABSENT else value) is not None

    return take


def drops(*names: str, default: float) -> Take:
    """Whether a dropout drops anything."""
    probability = number(*names, default=default)
    return lambda config: probability(config) > 0


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def option(name: str) -> Take:
    """What the caller said beside the config."""
    return lambda config: config.options[name]


def times(factor: int, take: Take) -> Take:
    """A multiple of another field."""
    return lambda config: factor * take(config)


def floor_divided(numerator: Take, divisor: Take) -> Take:
    """The whole part of a quotient of two fields, as the class computes it."""
    return lambda config: numerator(config) // divisor(config)


def indices(layers: Take, config: Config) -> range:
    """Those of the layers, where each has a word of its own.

    Args:
        layers: How many there are.
        config: The config.

    Raises:
        ValueError: If they are a symbol's, or too many for words.
    """
    number = layers(config)
    if type(number) is not int or number > MOST_LAYERS:
        raise ValueError(
            f"num_hidden_layers = {quoted(number)}: expected an int of at most {MOST_LAYERS} where "
            "layers differ"
        )
    return range(number)


def by_layer(layers: Take, rule: Callable[[Config], Callable[[int], Any]]) -> Take:
    """A word for each layer, by a rule that a config gives for their indices.

    Args:
        layers: How many layers there are.
        rule: Of a config, what gives the word of the layer of an index, which begins at 0.
    """

    def take(config: Config) -> tuple[Any, ...]:
        word_of = rule(config)
        return tuple(word_of(index) for index in indices(layers, config))

    return take


def listed(name: str, length: Take, known: Mapping[Any, str], default: Take) -> Take:
    """A list with an entry for each layer, such as ``layer_types``.

    Args:
        name: The field's name.
        length: How many layers there are.
        known: What each value stands for.
        default: The list where it is absent or ``null``, as what its values stand for.
    """

    def take(config: Config) -> tuple[str, ...]:
        _, value = config.given(name)
        if value is ABSENT or value is None:
            return tuple(default(config))
        layers = length(config)
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != layers:
            raise ValueError(
                f"{name} = {quoted(value)}: expected a list of {quoted(layers)} entries, one for "
                "each layer"
            )
        for index, entry in enumerate(value):
            if entry not in list(known):  # as a list, since an entry need not have a hash
                raise ValueError(
                    f"{name}[{index}] = {quoted(entry)}: expected one of "
                    f"{', '.join(map(repr, known))}"
                )
        return tuple(known[entry] for entry in value)

    return take


def rotary_dim(head_dim: Take, *names: str, default: float = 1.0) -> Take:
    """Channels of a head that turn: ⌊c · factor⌋; None where all do.

    Args:
        head_dim: c.
        names: What the factor is called, beside ``partial_rotary_factor`` in ``rope_parameters``.
        default: The factor where it is absent.
    """
    factor = number(*names, "partial_rotary_factor", default=default)

    def take(config: Config) -> int | None:
        share = factor(config)
        for nested in ("rope_scaling", "rope_parameters"):
            _, parameters = config.given(nested)
            if isinstance(parameters, Mapping):
                share = number("partial_rotary_factor", default=share)(Config(parameters, {}))
        if not 0 <= share <= 1:
            raise ValueError(
                f"partial_rotary_factor = {quoted(share)}: expected a number from 0 to 1, the "
                "share of a head's channels that turn"
            )
        channels = head_dim(config)
        turns = int(channels * share)
        return None if turns == channels else turns

    return take


@dataclasses.dataclass(frozen=True)
class Reading:
    """Where a model is from.

    Attributes:
        model_type: Of the config.
        head: Its architecture's name: what stands on the last layer.
        left_out: Parts of the model that are not counted, such as a vision tower.
        not_looked_at: Fields that nobody read and that are not known to have no effect.
        remarks: More that the reader should know.
    """

    model_type: str
    head: str
    left_out: tuple[str, ...] = ()
    not_looked_at: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """What was left out, in plain words, a line each."""
        lines = list(self.remarks)
        if self.left_out:
            lines.append(f"left out: {', '.join(self.left_out)}")
        if self.not_looked_at:
            lines.append(f"not looked at: {', '.join(self.not_looked_at)}")
        return lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What a ``model_type`` says, as data.

    Attributes:
        declaration: The architecture that it is declared as.
        heads: Names in ``architectures`` that are counted; the first where there is none.
        fields: Of each field of the declaration, what reads it, or a constant.
        without_effect: Fields that change neither parameters nor FLOPs.
        only: Fields of which a few values are modelled alone; any other is refused.
        nested: Fields that are objects; theirs are read as ``"attn_config.alibi"``.
        options: What :func:`flopcount.from_hf` takes for it beside ``seq_len``.
        remarks: Functions of the config that say in words what the reader should know, or nothing.
    """

    declaration: type
    heads: tuple[str, ...]
    fields: Mapping[str, Any]
    without_effect: frozenset[str] = frozenset()
    only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    nested: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()
    remarks: tuple[Callable[[Config], str | None], ...] = ()
