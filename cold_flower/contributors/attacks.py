"""Contributors that err or mean harm, to try the defences on (paper, section 9).

The key ``attacks`` says who does what, from which iteration on: a TOML inline table, such as
``{music = {kind = "scale", size = 10.0, from = 2}, travel = "label-flip"}``. Attackers
answer queries and evaluations honestly; what they do is done to the answer to a train message.
"""

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cold_flower.config import Config
from cold_flower.contributors.contributor import Contributor
from cold_flower.data.encode import Encoded, EncodedSplits
from cold_flower.data.plan import Plan, plan
from cold_flower.errors import ConfigError
from cold_flower.models.body import State
from cold_flower.models.starting import starting_model
from cold_flower.seeds import derive
from strategies.fusion import fingerprint
from strategies.names import unknown

HUGE = 1 << 24  # numbers: 64 MB


@dataclass
class Answer:
    """What a contributor sends back: body, metrics, and what it says of itself."""

    body: dict[str, Tensor]
    metrics: dict[str, float]
    about: dict[str, Any] = field(default_factory=dict)


Honest = Callable[[Contributor, State], Answer]
"""Finetunes as a good contributor does."""


@dataclass(frozen=True)
class Attack:
    """What one contributor does."""

    kind: str
    size: float = math.nan
    """Of scale, sign-flip and noise; by default each kind's own."""
    first: int = 1
    """The first iteration in which it is done; ``from`` in the table."""
    of: str = ""
    """Whose weights ``copy`` sends."""

    def answer(self, me: Contributor, base: State, seed: int, honest: Honest) -> Answer:
        """Return the harmful answer."""
        return KINDS[self.kind](self, me, base, derive(seed, me.name, "attack"), honest)

    def sized(self, default: float) -> float:
        """Return the size, or the kind's own default."""
        return default if math.isnan(self.size) else self.size


def parse(config: Config) -> dict[str, Attack]:
    """Return the attack by contributor.

    Raises:
        ConfigError: not a table, or an entry that is not as documented.
    """
    text = config.attacks.strip()
    if not text:
        return {}
    try:
        table = tomllib.loads(f"attacks = {text}")["attacks"]
        return {name: _attack(name, entry) for name, entry in dict(table).items()}
    except (tomllib.TOMLDecodeError, TypeError, ValueError) as error:
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


def of(me: Contributor, iteration: int) -> Attack | None:
    """Return what this contributor does in this iteration, if not its best."""
    attack = parse(me.config).get(me.name)
    return attack if attack and iteration >= attack.first else None


def _moved(answer: Answer, base: State, by: float) -> Answer:
    return replace(answer, body={k: base[k] + by * (t - base[k]) for k, t in answer.body.items()})


def scale(attack: Attack, me: Contributor, base: State, seed: int, honest: Honest) -> Answer:
    """Go so many times as far (x10)."""
    return _moved(honest(me, base), base, attack.sized(10.0))


def sign_flip(attack: Attack, me: Contributor, base: State, seed: int, honest: Honest) -> Answer:
    """Go the other way."""
    return _moved(honest(me, base), base, -attack.sized(1.0))


def nan(attack: Attack, me: Contributor, base: State, seed: int, honest: Honest) -> Answer:
    """Put one NaN into the largest tensor."""
    answer = honest(me, base)
    largest = max(answer.body, key=lambda key: answer.body[key].numel())
    answer.body[largest].view(-1)[0] = math.nan
    return answer


def noise(attack: Attack, me: Contributor, base: State, seed: int, honest: Honest) -> Answer:
    """Add noise as large as the weights themselves, or so many times that."""
    answer = honest(me, base)
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in answer.body.items():
        spread = float(base[key].std(unbiased=False))
        drawn = torch.randn(tensor.shape, generator=generator)
        answer.body[key] = tensor + attack.sized(1.0) * spread * drawn
    return answer


def random(attack: Attack, me: Contributor, base: State, seed: int, honest: Honest) -> Answer:
    """Send weights drawn anew, each tensor with the base's mean and spread."""
    answer = honest(me, base)
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in answer.body.items():
        drawn = torch.randn(tensor.shape, generator=generator)
        answer.body[key] = base[key].mean() + base[key].std(unbiased=False) * drawn
    return answer


def stale(attack: Attack, me: Contributor, base: State, seed: int, honest: Honest) -> Answer:
    """Finetune the starting model instead of the base, and say so."""
    start = starting_model(me.base, me.config.seed)[1]
    return replace(honest(me, start), about={"base": fingerprint(start.items())})


def stale_lie(attack: Attack, me: Contributor, base: State, seed: int, honest: Honest) -> Answer:
    """Finetune the starting model, and say that it was the base."""
    return replace(stale(attack, me, base, seed, honest), about={})


def copy(attack: Attack, me: Contributor, base: State, seed: int, honest: Honest) -> Answer:
    """Send another contributor's weights."""
    names = plan(me.config).names
    return honest(Contributor(me.config, names.index(attack.of)), base)


class _Flipped(Contributor):
    def splits(self, iteration: int = 0, *, evaluation: bool = False) -> EncodedSplits:
        data = super().splits(iteration, evaluation=evaluation)
        top = len(data.labels) - 1  # regression: one label, the numbers change their sign

        def flipped(rows: Encoded) -> Encoded:
            return replace(rows, labels=top - rows.labels)

        return replace(data, train=flipped(data.train), dev=flipped(data.dev))


def label_flip(attack: Attack, me: Contributor, base: State, seed: int, honest: Honest) -> Answer:
    """Train on labels in the reverse order."""
    return honest(_Flipped(me.config, plan(me.config).names.index(me.name)), base)


def shape(attack: Attack, me: Contributor, base: State, seed: int, honest: Honest) -> Answer:
    """Send a tensor flat."""
    answer = honest(me, base)
    matrix = next(key for key, tensor in answer.body.items() if tensor.dim() > 1)
    answer.body[matrix] = answer.body[matrix].flatten()
    return answer


def huge(attack: Attack, me: Contributor, base: State, seed: int, honest: Honest) -> Answer:
    """Send a tensor of 64 MB in the place of one."""
    answer = honest(me, base)
    answer.body[next(iter(answer.body))] = torch.zeros(HUGE)
    return answer


def names(attack: Attack, me: Contributor, base: State, seed: int, honest: Honest) -> Answer:
    """Call itself, and a tensor, by a path."""
    answer = honest(me, base)
    answer.body["../../x"] = torch.zeros(1)
    return replace(answer, about={"contributor": "../../x"})


def metrics(attack: Attack, me: Contributor, base: State, seed: int, honest: Honest) -> Answer:
    """Claim a million times as many examples."""
    answer = honest(me, base)
    answer.metrics["num-examples"] *= 1_000_000
    return answer


KINDS: Mapping[str, Callable[[Attack, Contributor, State, int, Honest], Answer]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        scale, sign_flip, nan, noise, random, stale, stale_lie, copy, label_flip, shape, huge,
        names, metrics,
    )
}  # fmt: skip
