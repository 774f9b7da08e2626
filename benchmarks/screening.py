"""How often screening refuses the honest, and what it finds: measured contributions, drawn cohorts.

    python -m benchmarks.screening measure FOLDER [--model demo|minilm]
    python -m benchmarks.screening table FOLDER

``measure`` finetunes pools of contributions to one base, by recipe (learning rate, epochs, weight
decay): of the demo's tasks and of one task's shards (2,352 contributions, about an hour on a core),
or with ``minilm`` of 34 real datasets (COLD_FLOWER_REAL; longer). It keeps what
`strategies.diagnostics` measures of each and of each pair, and goes on where it was stopped.
``table`` draws cohorts, has the real `Screen` judge them, and counts the honest that are refused
and the attackers that are found, of cohorts of which one attacks.
"""

import argparse
import itertools
import json
import math
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cold_flower.config import Config
from cold_flower.contributors import attacks
from cold_flower.contributors.contributor import Contributor, Metrics
from cold_flower.data.plan import plan, resolve
from cold_flower.models.starting import starting_model
from cold_flower.seeds import derive
from strategies.diagnostics import Diagnosis, diagnose
from strategies.fusion import Weights
from strategies.screening import Candidate, Screen

SIZES = (3, 4, 5, 6, 8, 16, 32)
DRAWS = 200  # cohorts of each size and pool
CARRIED_OUT = ("noise", "random", "label-flip", "stale-lie")
DERIVED = {"sign-flip": -1.0, "x10": 10.0}  # an honest difference, times so much
ATTACKERS = 3  # members of a pool that also attack in each way
State = dict[str, Tensor]
Pool = dict[str, Any]


def recipes(model: str) -> Iterator[dict[str, Any]]:
    """Yield the finetuning keys of each pool."""
    if model == "demo":
        rates = (5e-5, 1e-4, 3e-4, 1e-3)
        chosen = [*itertools.product((0.01,), (1, 3, 10), rates)]
        chosen += itertools.product((0.0, 0.1), (1, 3), rates)
    else:  # decay, epochs, rate
        chosen = [(0.01, 5, 3e-4), (0.01, 1, 3e-4), (0.01, 1, 5e-5), (0.01, 1, 1e-3)]
        chosen += [(0.0, 5, 3e-4), (0.1, 5, 3e-4), (0.01, 5, 1e-3), (0.01, 5, 1e-4)]
    for decay, epochs, rate in chosen:
        yield {
            "finetune.learning-rate": rate,
            "finetune.max-epochs": epochs,
            "finetune.weight-decay": decay,
        }


def pools(model: str) -> Iterator[tuple[str, dict[str, Any], list[tuple[str, int]]]]:
    """Yield each pool's name, keys, and contributors: task, and seed of its data and draws."""
    fixed: dict[str, Any] = {"recipe": False, "contributors-per-iteration": 0}
    if model == "demo":
        fixed |= {"finetune.batch-size": 8, "finetune.precision": "fp32"}
        tasks = plan(resolve(Config.from_flat(fixed))).names
        mixed = [(task, seed) for seed in range(2) for task in tasks]
        kinds = {"mixed": mixed, "alike": [("sports", seed) for seed in range(32)]}
    else:
        folder = os.environ["COLD_FLOWER_REAL"]
        fixed |= {
            "suite": f"{folder}/data/suite.toml",
            "base-model": f"{folder}/models/minilm",
            "finetune.batch-size": 16,
            "finetune.max-examples": 200,
            "finetune.max-dev-examples": 50,
            "finetune.max-length": 48,
            "evaluate.max-test-examples": 50,
        }
        tasks = plan(resolve(Config.from_flat(fixed))).names
        kinds = {"mixed": [(task, 0) for task in tasks]}
    for keys, (kind, members) in itertools.product(recipes(model), kinds.items()):
        rate, epochs, decay = keys.values()
        yield f"{model}-{kind}-{rate:g}-{epochs}-{decay:g}", fixed | keys, members


def measure(model: str, folder: Path) -> None:
    """Make the pools that are not there yet: contributions to the start, and to its next base."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["COLD_FLOWER_HOME"] = tempfile.mkdtemp()
    torch.set_num_threads(1)
    for name, keys, members in pools(model):
        first, second = (folder / f"{name}-{iteration}.json" for iteration in (0, 1))
        if second.exists():
            continue
        me = contributor(keys, *members[0])
        _, start = starting_model(me.base, 0)
        honest = pool(first, keys, start, start, members, 1)[:8]
        fused = {key: torch.stack([body[key] for body in honest]).mean(0) for key in start}
        del honest
        pool(second, keys, start, fused, members[::2], 2)


def contributor(keys: dict[str, Any], task: str, seed: int) -> Contributor:
    """Return a task's contributor, of a run of its own seed."""
    config = resolve(Config.from_flat({**keys, "seed": seed}))
    return Contributor(config, plan(config).names.index(task))


def pool(
    path: Path, keys: dict[str, Any], start: State, base: State,
    members: Sequence[tuple[str, int]], iteration: int,
) -> list[State]:  # fmt: skip
    """Finetune every member from a base, some as attackers, too; write the figures down.

    Returns:
        The honest bodies.
    """
    rows: list[dict[str, Any]] = []
    bodies: list[State] = []

    def add(kind: str, task: str, body: State, metrics: Metrics) -> None:
        bodies.append(body)
        rows.append({"kind": kind, "task": task, **metrics})

    for task, seed in members:
        me = contributor(keys, task, seed)
        add("honest", task, *finetuned(iteration, seed)(me, base))
    honest = [*bodies]
    for task, seed in members[:ATTACKERS]:
        me = contributor(keys, task, seed)
        for kind in CARRIED_OUT:
            if kind == "stale-lie" and base is start:
                continue  # that base is the newest one
            case = attacks.Case(attacks.Attack(kind), me, base, seed, finetuned(iteration, seed))
            answer = attacks.KINDS[kind](case)
            add(kind, task, answer.body, answer.metrics)
    given = [Weights(body, name=str(i)) for i, body in enumerate(bodies)]
    measured = diagnose(Weights(base), given)
    for i, row in enumerate(rows):
        row |= {
            "norm": measured.norms[i], "growth": measured.growth[i], "least": measured.least[i],
        }  # fmt: skip
    path.write_text(json.dumps({"rows": rows, "pairwise": measured.pairwise}))
    print(f"{path.name}: {len(rows)}", flush=True)
    return honest


def finetuned(iteration: int, seed: int) -> Callable[[Contributor, Any], Any]:
    """Return how a contributor finetunes from a base."""
    return lambda who, base: who.finetune(base, iteration=iteration, seed=derive(seed, "pool"))


def judged(pool: Pool, cohort: Sequence[int], attack: str = "") -> list[str]:
    """Return the reasons of refusal in a cohort of a pool's rows; the first one may be derived."""
    rows, factor = [pool["rows"][i] for i in cohort], DERIVED.get(attack, 1.0)
    factors = [factor, *[1.0] * (len(cohort) - 1)]
    signs = [math.copysign(1, f) for f in factors]
    measured = Diagnosis(
        norms=[row["norm"] * abs(f) for row, f in zip(rows, factors, strict=True)],
        mean=math.nan,
        cosines=[],
        without=[],
        pairwise=[
            [pool["pairwise"][i][j] * s * t for j, t in zip(cohort, signs, strict=True)]
            for i, s in zip(cohort, signs, strict=True)
        ],
        conflicts=0.0,
        layers={},
        # 1 + 2 <d, theta> / |d|^2, of f d
        growth=[1 + (row["growth"] - 1) / f for row, f in zip(rows, factors, strict=True)],
        least=[tuple(row["least"]) for row in rows],
    )
    keys = ("num-examples", "train-loss", "dev-accuracy", "steps")
    given = [
        Candidate(f"{k:02}", str(k), {key: row[key] for key in keys}) for k, row in enumerate(rows)
    ]
    return [verdict.reason for verdict in Screen()("base", given, measured).values()]


def table(folder: Path) -> None:
    """Print the honest refused by cohort size, and by recipe what is found in cohorts of eight."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    honest = {name: _of(pool, "honest") for name, pool in found.items()}
    print(f"{sum(map(len, honest.values()))} honest contributions in {len(found)} pools\n")
    print("| cohort of | pools | honest refused | cohorts with one | by check |")
    print("|---|---|---|---|---|")
    for size in SIZES:
        print(_by_size(size, found, honest))
    attacked = (*DERIVED, *CARRIED_OUT)
    head = ("recipe", "growth", "agreement", "honest refused", *attacked)
    print(f"\n| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for name, pool in found.items():
        print(_by_recipe(name, pool, honest[name], attacked))


def _of(pool: Pool, kind: str) -> list[int]:
    return [i for i, row in enumerate(pool["rows"]) if row["kind"] == kind]


def _by_size(size: int, found: dict[str, Pool], honest: dict[str, list[int]]) -> str:
    draw, checks, refused, hit, drawn, pools = random.Random(size), Counter[str](), 0, 0, 0, 0
    for name, pool in found.items():
        if len(honest[name]) < size:
            continue
        pools += 1
        for _ in range(DRAWS):
            reasons = [r for r in judged(pool, draw.sample(honest[name], size)) if r]
            checks.update(reason.split(":")[0] for reason in reasons)
            refused, hit, drawn = refused + len(reasons), hit + bool(reasons), drawn + 1
    shares = f"{refused / max(1, drawn * size):.3%} | {hit / max(1, drawn):.2%}"
    return f"| {size} | {pools} | {shares} | {', '.join(f'{k} {n}' for k, n in checks.items())} |"


def _by_recipe(name: str, pool: Pool, honest: list[int], attacked: Sequence[str]) -> str:
    draw, size = random.Random(8), min(8, len(honest))
    refused = sum(bool(r) for _ in range(DRAWS) for r in judged(pool, draw.sample(honest, size)))
    cells = [f"{refused / DRAWS / size:.2%}"]
    for attack in attacked:
        who, times = honest if attack in DERIVED else _of(pool, attack), 0
        for _ in range(DRAWS if who else 0):
            attacker = draw.choice(who)
            others = draw.sample([i for i in honest if i != attacker], size - 1)
            times += bool(judged(pool, [attacker, *others], attack)[0])
        cells.append(f"{times / DRAWS:.0%}" if who else "")
    growth = sorted(pool["rows"][i]["growth"] for i in honest)
    shown = f"{growth[0]:.2f} {median(growth):.2f} {growth[-1]:.2f}"
    pairs = [pool["pairwise"][i][j] for i, j in itertools.combinations(honest, 2)]
    return f"| {name} | {shown} | {median(pairs):.3f} | {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("measure", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=("demo", "minilm"), default="demo")
    chosen = parser.parse_args()
    if chosen.what == "measure":
        measure(chosen.model, chosen.folder)
    else:
        table(chosen.folder)
