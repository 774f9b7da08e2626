"""Stages around a fusion rule: clip -> rule -> norm -> step (learning rate, optimizer) -> anchor.

A rule combines one iteration's contributions and remembers nothing. The stages bound what
goes in (clip), give what comes out a length (norm), decide how far the base follows it (step),
and how far it may drift (anchor); only the step has a memory, a safetensors file beside each
iteration.

- **clip**: d_i * min(1, C / ||d_i||), C the median of the norms or fixed.
- **norm**: the rule's update, as long as the plain mean of the d_i that the rule is given
  (clipped, if they are), as the median d_i, or that many times as long as the mean. The mean of n
  updates that are nearly orthogonal is sqrt(n) times shorter than one of them, so a rule that
  takes longer steps may look better by that alone. The rule runs twice for it: once to be
  measured, once to be taken.
- **step**, sgd: v = momentum * v + d; theta + rate * v, Nesterov: theta + rate * (d +
  momentum * v), as in FedAvgM (Hsu et al., arXiv 1909.06335) and DiLoCo (Douillard et al.,
  arXiv 2311.08105). Paper, section 8: "restrict the effect of each iteration".
- **step**, adam: FedAdam (Reddi et al., arXiv 2003.00295), with bias correction. There eta
  is 0.1 and tau 1e-3, which moves every weight by up to 0.1 and destroys a finetuned
  encoder. Here both are 1e-3, unless other ones are set: a weight whose update is steady
  moves by at most the rate, and, with a rate of at most tau, by no more than the update; one
  whose updates grow, by at most 2.4 times as much, the largest that m / sqrt(v) can be with betas
  0.9 and 0.99 (with another beta1, (1 - beta1) / sqrt(1 - beta2) / sqrt(1 - beta1^2 / beta2)).
- **anchor**: theta + anchor * (theta_0 - theta). Paper, section 8: "regularizing the
  distance from the pretrained model".
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from strategies.errors import FusionError
from strategies.fusion import (
    Rule,
    SafetensorsWriter,
    Weights,
    is_finite,
    load,
    read_metadata,
)
from strategies.fusion._deltas import Difference, Scaled, learned, narrow, spans, square

BETA2, TAU = 0.99, 1e-3  # of adam


@dataclass(frozen=True)
class Stages:
    """The stages' options; the defaults do nothing.

    Raises:
        FusionError: an option out of its range.
    """

    clip: str = ""
    """``median``, a number, or empty."""
    norm: str = ""
    """``mean``, ``contributions`` (their median), a multiple of the mean's, or empty."""
    learning_rate: float = 0.0
    """0 is the optimizer's own: 1 for sgd, 1e-3 for adam."""
    optimizer: str = "sgd"
    momentum: float = 0.0
    """Of sgd; beta1 of adam, where 0 stands for 0.9."""
    nesterov: bool = False
    anchor: float = 0.0

    def __post_init__(self) -> None:
        if self.clip not in ("", "median") and not _positive(self.clip):
            raise FusionError(f"clip is 'median' or a number above 0, got {self.clip!r}")
        if self.norm not in ("", "mean", "contributions") and not _positive(self.norm):
            raise FusionError(
                f"norm is 'mean', 'contributions' or a number above 0, got {self.norm!r}"
            )
        if self.optimizer not in ("sgd", "adam"):
            raise FusionError(f"optimizer is sgd or adam, got {self.optimizer!r}")
        if not 0 <= self.momentum < 1:
            raise FusionError(f"momentum is at least 0 and below 1, got {self.momentum:g}")
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise FusionError("nesterov goes with optimizer sgd and a momentum above 0")
        if not 0 <= self.anchor <= 1:
            raise FusionError(f"anchor is a share from 0 to 1, got {self.anchor:g}")
        if not 0 <= self.learning_rate < math.inf:
            raise FusionError(f"learning-rate is at least 0, got {self.learning_rate:g}")

    @property
    def rate(self) -> float:
        """Return the fusion learning rate."""
        return self.learning_rate or (1e-3 if self.optimizer == "adam" else 1.0)

    @property
    def memory(self) -> tuple[str, ...]:
        """Name what is kept of each tensor between iterations."""
        if self.optimizer == "adam":
            return ("momentum", "variance")
        return ("momentum",) if self.momentum else ()


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def staged(
    rule: Rule,
    stages: Stages,
    *,
    start: Callable[[], Weights],
    before: Callable[[], Path | None],
    after: Callable[[], Path],
    measured: Callable[[float], object] = lambda size: None,
) -> Rule:
    """Put the stages around a rule; without any, return the rule itself.

    Args:
        rule: from `strategies.fusion.load`.
        stages: their options.
        start: opens theta_0, the pretrained model, for the anchor.
        before: where the last iteration left the memory; None at the first.
        after: where to leave it now.
        measured: called with the L2 norm of the rule's own update, where norm gives it another.

    The result is called as the rule is, with a base in float32; exhausting what it yields writes
    the memory.
    """
    if stages == Stages():
        return rule

    def fuse(
        base: Weights, given: Sequence[Weights], *, seed: int = 0
    ) -> Iterator[tuple[str, Tensor]]:
        taken = clipped(base, given, stages.clip) if stages.clip and given else given
        scale = 1.0
        if stages.norm and given:
            size = length(base, rule(base, taken, seed=seed))
            measured(size)
            scale = wanted(base, taken, stages.norm) / size if size else 1.0
        fused = rule(base, taken, seed=seed)
        anchor = start() if stages.anchor else None
        memory = _Memory(stages, base, before, after)
        with memory.writer or nullcontext():
            for key, (dtype, _) in base.template().items():
                name, tensor = next(fused)
                if name != key:
                    raise FusionError(f"the rule yields {name} where {key} is due")
                if dtype.is_floating_point:
                    old = base.get(key).float()
                    new = old + memory.step(key, (tensor.float() - old).mul_(scale))
                    if anchor:
                        new += stages.anchor * (anchor.get(key).float() - new)
                    tensor = narrow(new, dtype)
                    if not is_finite(tensor.float().square()):
                        raise FusionError(
                            f"{key} is too large for any model after the stages ({stages}): lower "
                            "fusion.learning-rate"
                        )
                yield key, tensor

    fuse.min_contributions = getattr(rule, "min_contributions", 1)  # type: ignore[attr-defined]
    fuse.statistic = getattr(rule, "statistic", "")  # type: ignore[attr-defined]
    return fuse


def clipped(base: Weights, given: Sequence[Weights], clip: str) -> list[Weights]:
    """Shorten the differences (at least one) that are longer than ``clip``, or their median."""
    norms = [norm(base, weights) for weights in given]
    bound = statistics.median(norms) if clip == "median" else float(clip)
    return [
        Scaled(base, weights, bound / size) if size > bound else weights
        for weights, size in zip(given, norms, strict=True)
    ]


def norm(base: Weights, weights: Weights) -> float:
    """Return the L2 norm of a contribution's difference over the whole body."""
    difference = Difference(base, weights)
    squares = 0.0
    for key, count in learned(base).items():
        for span in spans(count, 1):
            squares += float(difference.read(key, span).double().square().sum())
    return math.sqrt(squares)


def wanted(base: Weights, given: Sequence[Weights], by: str) -> float:
    """Return the norm that an update of these contributions (at least one) is to have."""
    if by == "contributions":
        return statistics.median(norm(base, weights) for weights in given)
    times = 1.0 if by == "mean" else float(by)
    return times * length(base, load("average")(base, given, seed=0))


def length(base: Weights, fused: Iterable[tuple[str, Tensor]]) -> float:
    """Return the L2 norm of what a rule adds to the base."""
    squares = 0.0
    for key, tensor in fused:
        if tensor.is_floating_point():
            squares += square(base.get(key), tensor)
    return math.sqrt(squares)


class _Memory:
    """The optimizer's state: read a tensor at a time, written as the next one is made."""

    def __init__(
        self,
        stages: Stages,
        base: Weights,
        before: Callable[[], Path | None],
        after: Callable[[], Path],
    ) -> None:
        self._stages = stages
        self._old: Weights | None = None
        self.writer: SafetensorsWriter | None = None
        self.steps = 1
        if not stages.memory:
            return
        if path := before():
            if not path.exists():
                raise FusionError(f"the optimizer's state is missing: {path}")
            self._old = Weights(path)
            self.steps += int(read_metadata(path)["steps"])
        template = {
            f"{kind}.{key}": (torch.float32, shape)
            for key, (dtype, shape) in base.template().items()
            if dtype.is_floating_point
            for kind in stages.memory
        }
        self.writer = SafetensorsWriter(after(), template, {"steps": str(self.steps)})

    def step(self, key: str, update: Tensor) -> Tensor:
        """Return by how much the base moves, for a fused update: both float32."""
        stages, rate = self._stages, self._stages.rate
        if not stages.memory:
            return update.mul_(rate)
        if stages.optimizer == "sgd":
            momentum = self._next("momentum", key, update, stages.momentum, 1.0)
            ahead = update + stages.momentum * momentum if stages.nesterov else momentum
            return rate * ahead
        beta = stages.momentum or 0.9
        momentum = self._next("momentum", key, update, beta, 1 - beta)
        variance = self._next("variance", key, update.square(), BETA2, 1 - BETA2)
        mean = momentum / (1 - beta**self.steps)
        spread = (variance / (1 - BETA2**self.steps)).sqrt_()
        return rate * mean / (spread + TAU)

    def _next(self, kind: str, key: str, value: Tensor, keep: float, take: float) -> Tensor:
        name = f"{kind}.{key}"
        new = take * value if self._old is None else keep * self._old.get(name) + take * value
        if not is_finite(new):  # Adam would divide by an infinite variance: a weight stands still
            raise FusionError(
                f"the {kind} of {key} holds NaN or infinity: its updates are too large; "
                "fusion.clip bounds them"
            )
        assert self.writer is not None
        self.writer.write(name, new)
        return new
