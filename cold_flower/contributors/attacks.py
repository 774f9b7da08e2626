"""Contributors that err or mean harm, to try the defences on (paper, section 9).

The key ``attacks`` says who does what, from which iteration on: a TOML inline table, such as
``{music = {kind = "scale", size = 10.0, from = 2}, travel = "label-flip"}``. Attackers
answer queries and evaluations honestly; what they do is done to the answer to a train message.
The ClientApp loads this file in a simulation whose ``attacks`` are set, and never at a site.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cold_flower import toml
from cold_flower.config import Config
from cold_flower.contributors.contributor import Contributor, Metrics
from cold_flower.data.encode import Encoded, EncodedSplits
from cold_flower.data.plan import Plan, plan
from cold_flower.errors import ConfigError
from cold_flower.models.body import State
from cold_flower.models.starting import starting_model
from cold_flower.seeds import derive
from strategies.fusion import fingerprint
from strategies.fusion._statistics import KINDS as KINDS_OF_STATISTICS
from strategies.fusion._statistics import prefix
from strategies.names import unknown

BESIDE = tuple(set(map(prefix, KINDS_OF_STATISTICS)))
SIZED = ("scale", "sign-flip", "noise", "label-flip")
HUGE = 1 << 24  # numbers: 64 MB


@dataclass
class Answer:
    """What a contributor sends back."""

    body: dict[str, Tensor]
    metrics: Metrics
    claims: dict[str, Any] = field(default_factory=dict)
    """What it says of itself that a good contributor would not."""


Finetune = Callable[[Contributor, State], tuple[dict[str, Tensor], Metrics]]
"""Finetunes a contributor's task from a base, honestly; returns body and metrics."""


@dataclass(frozen=True)
class Attack:
    """What one contributor does."""

    kind: str
    size: float = math.nan
    """Of scale, sign-flip, noise and label-flip; by default each kind's own."""
    first: int = 1
    """The first iteration in which it is done; ``from`` in the table."""
    of: str = ""
    """Whose weights ``copy`` sends."""


@dataclass(frozen=True)
class Case:
    """An attack at work in one iteration."""

    attack: Attack
    me: Contributor
    base: State
    seed: int
    finetune: Finetune

    def honest(self, who: Contributor | None = None, base: State | None = None) -> Answer:
        """Answer as a good contributor does, or as another one, or from another base."""
        return Answer(*self.finetune(who or self.me, self.base if base is None else base))

    def size(self, default: float) -> float:
        """Return how large the attack is; by default as large as its kind is."""
        return default if math.isnan(self.attack.size) else self.attack.size

    def index(self, name: str) -> int:
        """Return the partition id of a contributor."""
        return plan(self.me.config).names.index(name)


def parse(config: Config) -> dict[str, Attack]:
    """Return the attack by contributor.

    Raises:
        ConfigError: not a table, or an entry that is not as documented.
    """
    text = config.attacks.strip()
    if not text:
        return {}
    try:
        table = toml.value(text)
        return {name: _attack(name, entry) for name, entry in dict(table).items()}
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "attacks is a TOML inline table such as {music = 'sign-flip', travel = "
            f"{{kind = 'scale', size = 10.0, from = 2}}}}: {error}"
        ) from error


def _attack(name: str, entry: Any) -> Attack:
    given = {"kind": entry} if isinstance(entry, str) else dict(entry)
    if "from" in given:
        given["first"] = given.pop("from")
    types = {"kind": str, "size": float, "first": int, "of": str}
    for key, value in given.items():
        if key not in types:
            raise ValueError(unknown(f"key of {name}", key, ["kind", "size", "from", "of"]))
        if not isinstance(value, (int, float) if key == "size" else types[key]):
            raise ValueError(f"{key} of {name} is {value!r}, expected {types[key].__name__}")
    attack = Attack(**given)
    if attack.kind not in KINDS:
        raise ValueError(unknown(f"attack of {name}", attack.kind, sorted(KINDS)))
    if "size" in given and attack.kind not in SIZED:
        raise ValueError(f"{name}: size is about {', '.join(SIZED)}, not about {attack.kind}")
    if attack.kind == "label-flip" and not (math.isnan(attack.size) or 0 < attack.size <= 1):
        raise ValueError(f"{name}: size of label-flip is a share, in (0, 1], got {attack.size}")
    if (attack.kind == "copy") != bool(attack.of):
        raise ValueError(f"{name}: of names the contributor whose weights copy sends, only there")
    return attack


def check(config: Config, plan: Plan) -> None:
    """Check the key ``attacks``.

    Raises:
        ConfigError: naming what is wrong.
    """
    for name, attack in parse(config).items():
        for who in (name, *([attack.of] if attack.of else ())):
            if who not in plan.seen:
                raise ConfigError(unknown("contributor in attacks", who, plan.seen))


def answer(
    me: Contributor, base: State, finetune: Finetune, *, iteration: int, seed: int
) -> Answer:
    """Answer a train message, harmfully where the key ``attacks`` says so.

    Args:
        me: who answers.
        base: what it is to finetune.
        finetune: how anybody finetunes from a base in this iteration.
        iteration: which.
        seed: the run's.
    """
    attack = parse(me.config).get(me.name)
    if attack is None or iteration < attack.first:
        return Answer(*finetune(me, base))
    seed, beside = derive(seed, me.name, "attack"), {}

    def bodies(who: Contributor, start: State) -> tuple[dict[str, Tensor], Metrics]:
        """Finetune; what a rule asked for beside the body is sent as it is."""
        sent, metrics = finetune(who, start)
        beside.update({key: tensor for key, tensor in sent.items() if key.startswith(BESIDE)})
        return {key: sent[key] for key in sent if key not in beside}, metrics

    made = KINDS[attack.kind](Case(attack, me, base, seed, bodies))
    return replace(made, body={**made.body, **beside})


def _moved(case: Case, by: float) -> Answer:
    sent, base = case.honest(), case.base
    return replace(sent, body={k: base[k] + by * (t - base[k]) for k, t in sent.body.items()})


def scale(case: Case) -> Answer:
    """Go so many times as far (x10)."""
    return _moved(case, case.size(10.0))


def sign_flip(case: Case) -> Answer:
    """Go the other way."""
    return _moved(case, -case.size(1.0))


def nan(case: Case) -> Answer:
    """Put one NaN into the largest tensor."""
    sent = case.honest()
    largest = max(sent.body, key=lambda key: sent.body[key].numel())
    sent.body[largest].view(-1)[0] = math.nan
    return sent


def noise(case: Case) -> Answer:
    """Add noise as large as the weights themselves, or so many times that."""
    sent = case.honest()
    generator = torch.Generator().manual_seed(case.seed)
    for key, tensor in sent.body.items():
        spread = float(case.base[key].std(unbiased=False))
        drawn = torch.randn(tensor.shape, generator=generator)
        sent.body[key] = tensor + case.size(1.0) * spread * drawn
    return sent


def random(case: Case) -> Answer:
    """Send weights drawn anew, each tensor with the base's mean and spread."""
    sent = case.honest()
    generator = torch.Generator().manual_seed(case.seed)
    for key, tensor in sent.body.items():
        drawn = torch.randn(tensor.shape, generator=generator)
        base = case.base[key]
        sent.body[key] = base.mean() + base.std(unbiased=False) * drawn
    return sent


def stale(case: Case) -> Answer:
    """Finetune the starting model instead of the base, and say so."""
    start = starting_model(case.me.base, case.me.config.seed)[1]
    return replace(case.honest(base=start), claims={"base": fingerprint(start.items())})


def stale_lie(case: Case) -> Answer:
    """Finetune the starting model, and say that it was the base."""
    return replace(stale(case), claims={})


def copy(case: Case) -> Answer:
    """Send another contributor's weights."""
    return case.honest(Contributor(case.me.config, case.index(case.attack.of)))


class _Flipped(Contributor):
    """Reads a share of its training and dev examples with the labels in the reverse order."""

    share, draw = 1.0, 0

    def splits(self, iteration: int = 0, *, evaluation: bool = False) -> EncodedSplits:
        data = super().splits(iteration, evaluation=evaluation)
        top = len(data.labels) - 1  # regression: one label, the numbers change their sign

        def flipped(rows: Encoded, purpose: str) -> Encoded:
            random = torch.Generator().manual_seed(derive(self.draw, purpose))
            chosen = torch.rand(len(rows.labels), generator=random) < self.share
            return replace(rows, labels=torch.where(chosen, top - rows.labels, rows.labels))

        return replace(data, train=flipped(data.train, "train"), dev=flipped(data.dev, "dev"))


def label_flip(case: Case) -> Answer:
    """Train on labels in the reverse order: all of them, or the share ``size``."""
    me = _Flipped(case.me.config, case.index(case.me.name))
    me.share, me.draw = case.size(1.0), case.seed
    return case.honest(me)


def shape(case: Case) -> Answer:
    """Send a tensor flat."""
    sent = case.honest()
    matrix = next(key for key, tensor in sent.body.items() if tensor.dim() > 1)
    sent.body[matrix] = sent.body[matrix].flatten()
    return sent


def huge(case: Case) -> Answer:
    """Send a tensor of 64 MB in the place of one."""
    sent = case.honest()
    sent.body[next(iter(sent.body))] = torch.zeros(HUGE)
    return sent


def names(case: Case) -> Answer:
    """Call itself, and a tensor, by a path."""
    sent = case.honest()
    sent.body["../../x"] = torch.zeros(1)
    return replace(sent, claims={"contributor": "../../x"})


def metrics(case: Case) -> Answer:
    """Claim a million times as many examples."""
    sent = case.honest()
    sent.metrics["num-examples"] *= 1_000_000
    return sent


KINDS: Mapping[str, Callable[[Case], Answer]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        scale, sign_flip, nan, noise, random, stale, stale_lie, copy, label_flip, shape, huge,
        names, metrics,
    )
}  # fmt: skip
