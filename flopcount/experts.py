"""Mixtures of experts, and the modules that predict more than one token.

Letters as in :mod:`flopcount.operations`; d is ``channels``, E the experts, k how many of them a
position is routed to. Choosing the k largest scores moves data and is not counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from flopcount.blocks import MLP, TOKENS, Block, Layers
from flopcount.operations import Pass, cross_entropy, linear, norm, shared_input, work
from flopcount.rows import AnyRow, Cached, Product, Tensor, Value, WeightName, Work, on, with_values
from flopcount.sizes import Size

SHAZEER_2017 = "Shazeer et al. 2017 (arXiv 1701.06538), section 2"
DEEPSEEK_V3 = "DeepSeek-AI 2024 (arXiv 2412.19437), section 2.2"
SCORES = {
    "softmax": (
        5,
        4,
        "forward: maximum, subtract, exponential, sum, divide; "
        "backward: s·ds, its sum, subtract, times s",
    ),
    "sigmoid": (3, 3, "forward: exponential, 1 +, divide; backward: 1 - σ, times σ, times dy"),
}
"""What a score costs by its function: FLOPs forward and backward, and their reason."""


def named(rows: Iterator[AnyRow], name: str) -> Iterator[AnyRow]:
    """An MLP's rows under a name of their own, beside other MLPs of the same layer.

    >>> [row.term for row in named(MLP(4, 8).rows(Pass(1, 2)), "expert") if hasattr(row, "term")]
    ['expert up', 'expert gelu', 'expert down']
    """

    def own(term: str) -> str:
        return f"{name} {term.removeprefix('mlp ')}"

    def weight(of: WeightName) -> WeightName:
        return of[0], own(of[1])

    for row in with_values(rows, lambda value: value, weight):
        if isinstance(row, Value):
            yield row
        elif isinstance(row, Tensor | Cached):
            yield dataclasses.replace(row, name=own(row.name))
        elif isinstance(row, Product) and row.weight is not None:
            yield dataclasses.replace(row, term=own(row.term), weight=weight(row.weight))
        else:
            yield dataclasses.replace(row, term=own(row.term))


@dataclasses.dataclass(frozen=True)
class Router:
    """Scores of every expert and, of the k chosen ones, weights: 2ndE FLOPs per sequence.

    Attributes:
        scores: A key of :data:`SCORES`.
        after_choice: Whether that function acts on the k chosen scores alone.
        normalised: Whether the k weights are divided by their sum.
        scaled: Whether they are multiplied by a constant.
        bias: Whether the scores have one.
        correction: Whether a buffer of E numbers, which no gradient trains, is added to choose.

    Source: Shazeer et al. 2017 (arXiv 1701.06538); DeepSeek-AI 2024 (arXiv 2412.19437), section
    2.1.2, for the correction.
    """

    scores: str = "softmax"
    after_choice: bool = False
    normalised: bool = False
    scaled: bool = False
    bias: bool = False
    correction: bool = False

    def rows(self, at: Pass, channels: Size, experts: Size, top_k: Size) -> Iterator[AnyRow]:
        """The product, its function, the choice's correction, the weights."""
        yield from linear(at, "router", channels, experts, bias=self.bias, source=SHAZEER_2017)
        scored = top_k if self.after_choice else experts
        yield from work(at, f"router {self.scores}", scored, *SCORES[self.scores], "output")
        if self.correction:
            yield Tensor(
                "self", at.layer, "router correction", (at.layers, experts), is_buffer=True
            )
            yield from work(at, "router correction", experts, 1, 0, "forward: one addition")
        if self.normalised:
            reason = "forward: sum, divide; backward: w·dw, its sum, subtract, divide"
            yield from work(at, "router normalisation", top_k, 2, 4, reason, "output")
        if self.scaled:
            yield from work(at, "router scale", top_k, 1, 1, "forward: one product; backward: too")


@dataclasses.dataclass(frozen=True)
class MixtureOfExperts:
    """Each position passes through k of E experts: k times an MLP's FLOPs, E times its parameters.

    Beside them may stand an MLP that every position passes through.

    Attributes:
        channels: d.
        num_experts: E.
        top_k: k, at most E.
        expert: One expert.
        router: What chooses and weights them.
        shared: The MLP for every position, if any.
        shared_gate: Whether a sigmoid of a projection d → 1 weights it.
        shared_first: Whether it is executed before the experts; what recomputation spares depends
            on it.
        weighted: Whether the weights multiply the experts' ``"output"`` or their ``"input"``.

    Source: Shazeer et al. 2017 (arXiv 1701.06538); Fedus et al. 2021 (arXiv 2101.03961); Dai et al.
    2024 (arXiv 2401.06066) for shared experts.

    >>> mixture = MixtureOfExperts(4, 6, 2, MLP(4, 8), Router())
    >>> tensors = [row for row in mixture.rows(Pass(1, 3)) if isinstance(row, Tensor)]
    >>> [(tensor.name, tensor.count, tensor.active) for tensor in tensors]
    [('router', 24, 24), ('expert up', 192, 64), ('expert down', 192, 64)]
    """

    channels: Size
    num_experts: Size
    top_k: Size
    expert: MLP
    router: Router
    shared: MLP | None = None
    shared_gate: bool = False
    shared_first: bool = False
    weighted: str = "output"

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """Router, experts, weights and sum, and the shared MLP before or after them."""
        yield Value(("x",), "mixture input")
        if self.shared_first:
            yield from self._shared(at)
        router = self.router.rows(at, self.channels, self.num_experts, self.top_k)
        yield Value(("mixture input",), "router")
        yield from on("router", router)
        yield from self._routed(at)
        if not self.shared_first:
            yield from self._shared(at)
        # The k experts and the router read the input, and so do the shared MLP and its gate.
        routed = self.top_k * self.channels
        yield from shared_input(at, "routed input gradients", routed, 1, "mixture input")
        if self.shared is None:
            yield Value(("routed",), "x")
            return
        if self.shared_gate:
            reason = "forward: one product; backward: dy·s, and dy·x and its sum"
            gate = "shared gate"
            yield from linear(
                at, "shared gate", self.channels, 1, reads="mixture input", writes=gate
            )
            yield from on(gate, work(at, "shared gate sigmoid", 1, *SCORES["sigmoid"], "output"))
            yield from work(
                at, "shared gate product", self.channels, 1, 3, reason, "input",
                reads=("shared", gate), writes="shared", parts=((1, ("shared",)), (2, (gate,))),
            )  # fmt: skip
        yield from work(
            at, "shared sum", self.channels, 1, 0, "forward: shared + routed",
            reads=("shared", "routed"),
        )  # fmt: skip
        readers = 1 + self.shared_gate
        yield from shared_input(
            at, "shared input gradients", self.channels, readers, "mixture input"
        )

    def _routed(self, at: Pass) -> Iterator[AnyRow]:
        """K positions in place of each, E tensors in place of each."""
        routed = at.at(length=at.length * self.top_k)
        reason = "forward: times the weight; backward: dy·w, and dy·x and its sum"
        weights = tuple(
            work(
                routed,
                "expert weights",
                self.channels,
                1,
                3,
                reason,
                "input",
                reads=("x", "router"),
                parts=((1, ("x",)), (2, ("router",))),
            )
        )
        yield Value(("mixture input",), "x")
        if self.weighted == "input":
            yield from weights
        for row in named(self.expert.rows(routed), "expert"):
            if isinstance(row, Tensor):
                yield dataclasses.replace(
                    row,
                    factors=(self.num_experts, *row.factors),
                    used=(self.top_k, *row.factors),
                    bias=None if row.bias is None else (self.num_experts, *row.bias),
                )
            else:
                yield row
        if self.weighted == "output":
            yield from weights
        others = (self.top_k - 1) * self.channels
        yield from work(
            at, "expert sum", others, 1, 0, "forward: one addition beyond the first",
            writes="routed",
        )  # fmt: skip

    def _shared(self, at: Pass) -> Iterator[AnyRow]:
        if self.shared is not None:
            yield Value(("mixture input",), "shared")
            yield from on("shared", named(self.shared.rows(at), "shared expert"))


@dataclasses.dataclass(frozen=True)
class MultiTokenPrediction:
    """Modules that each predict one token more, of a layer and the network's own output layer.

    Each module norms the next token's embedding and the previous hidden state, projects both
    together from 2d to d, and goes through a layer, a norm and the output layer: per sequence
    2n(2d² + dV) FLOPs beside the layer's. It works on all n positions, as implementations do, also
    on the last ones, which have nothing left to predict.

    Attributes:
        channels: d.
        vocab_size: V.
        tied: Whether the output layer's weight is the token embedding; the modules share both.
        number: How many modules, one after the other.
        layer: What a module's layer does.

    Source: DeepSeek-AI 2024 (arXiv 2412.19437), section 2.2.
    """

    channels: Size
    vocab_size: Size
    tied: bool
    number: Size
    layer: tuple[Block, ...]

    carries = "hidden"

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """Two norms, the projection, the layer, a norm, logits and, in training, the loss."""
        d, inside = self.channels, at.at(layer="mtp", layers=self.number)
        reason = "forward: a look-up, no arithmetic; backward: one addition into the table"
        looked_up = work(inside, "embedding", d, 0, 1, reason, reads=(), parts=((1, (TOKENS,)),))
        yield from on("token", looked_up)
        yield from on("token", norm(inside, "embedding norm", d, bias=False, rms=True))
        yield from on("hidden", norm(inside, "hidden norm", d, bias=False, rms=True))
        yield Value(("token", "hidden"), "x")
        yield from linear(inside, "projection", 2 * d, d, source=DEEPSEEK_V3)
        yield from Layers("mtp", self.number, self.layer).rows(at)
        yield Value(("x",), "hidden")
        yield from norm(inside, "final norm", d, bias=False, rms=True)
        weight = TOKENS if self.tied else ("output", "logits")
        yield from linear(inside, "logits", d, self.vocab_size, weight=weight, source=DEEPSEEK_V3)
        if at.training:
            yield from cross_entropy(inside, self.vocab_size)
            yield Work(
                part="self",
                layer="mtp",
                term="shared weight gradients",
                factors=(self.number, self.vocab_size, d),
                forward_cost=0,
                backward_cost=2,
                reason="backward: each module's gradients of the embedding and of the output "
                "layer are added, once a step whatever the batch",
                reads=(),
                writes=None,
                backward_parts=((1, (TOKENS,)), (1, (weight,))),
            )
