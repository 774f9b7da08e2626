"""All that is open about a GPU, in one command; needs torch and transformers alone.

    python -m benchmarks.gpu --minutes 9 [--variants] [--out runs/gpu.json]

On RoBERTa-base of random weights and random tokens: the rate of products; finetuning at MNLI's
lengths and at 128 tokens, our loop against `transformers.Trainer` with its best flags (which needs
accelerate, too); 1, 2, 4 and 8 contributors on the GPU at once; the memory estimate; the size of
evaluation batches; where the time of a step goes. ``--variants`` adds packed sequences and
`torch.compile`. No part is begun that by its estimate does not fit the time; what takes three times
its estimate, and a minute, is ended; the file is written after every part.

Without a GPU the smallest size runs on cores: it shows that the benchmark works, nothing else.
``python -m benchmarks.results FILE`` takes the file up into docs/results.md.
"""

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import machine, results
from benchmarks.workers import Answer, WorkerError, Workers

PATIENCE, AT_LEAST = 3, 60.0  # times its estimate; seconds
REACHED = 0.4  # share of the rate of products that a repetition's length rests on
LENGTHS = {"MNLI's lengths": 0, "128 tokens": 128}
MATMUL, MEMORY, EVALUATION, PROFILE = "matmul", "memory", "evaluation", "profile"


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    shape: str
    """One of `benchmarks.work.SHAPES`."""
    weights: float
    """Of the layers, which a token meets."""
    batch: int
    shared_batch: int
    """Of contributors at once."""
    together: tuple[int, ...]
    evaluation: tuple[int, ...]
    """Sizes of batches, the first the one that is used."""
    memory: tuple[int, ...]
    """Sizes of batches."""
    seconds: float
    """Of one repetition, about."""
    repetitions: int
    start: float
    """Seconds until a process can measure, before the first has shown it."""
    threads: int = 0
    """Of each process; 0 = its share of the cores."""


LARGE = Size(
    "RoBERTa-base", 12 * 12 * 768**2, 256, 64, (1, 2, 4, 8), (64, 128, 256, 512), (16, 64, 256),
    seconds=4, repetitions=3, start=45,
)  # fmt: skip
SMALLEST = Size(
    "tiny RoBERTa", 2 * 12 * 32**2, 8, 8, (1, 2), (64, 128), (8,),
    seconds=0.01, repetitions=2, start=60, threads=1,
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """What is measured in one go."""

    name: str
    way: str
    options: dict[str, Any] = field(default_factory=dict)
    many: int = 1
    length: float = 1.0
    """Of a repetition, in `Size.seconds`."""
    setup: float = 5.0
    """Seconds of preparation beside starting the processes."""
    once: bool = False
    alone: bool = False
    """In a process that has done nothing before, the only one there."""
    needs: str = ""
    """A package."""


def parts(size: Size, variants: bool) -> Iterator[Part]:
    """Yield all parts, those of most value first; variants follow what they are compared with."""
    yield Part(MATMUL, "benchmarks.ways:matmul", length=0.5)
    fixed = {"task": "", "examples": 0, "epochs": 1, "shape": size.shape}
    for lengths, tokens in LENGTHS.items():
        for way, much in (("ours", 1.0), ("trainer-best", 1.5)):
            options = {**fixed, "way": way, "tokens": tokens, "batch": size.batch}
            yield Part(
                f"{way}, {lengths}", "benchmarks.finetune:prepare", options, length=much,
                needs="" if way == "ours" else "accelerate",
            )  # fmt: skip
    if variants:
        for variant, lengths in (
            ("packed", "MNLI's lengths"),
            ("compiled", "128 tokens"),
            ("compiled", "MNLI's lengths"),
        ):
            options = {"shape": size.shape, "variant": variant, "tokens": LENGTHS[lengths]}
            yield Part(
                f"{variant}, {lengths}", "benchmarks.variants:prepare",
                {**options, "batch": size.batch}, setup=60 if variant == "compiled" else 5,
            )  # fmt: skip
    for many in size.together:
        options = {**fixed, "way": "ours", "tokens": 0, "batch": size.shared_batch}
        yield Part(f"{many} at once", "benchmarks.finetune:prepare", options, many, length=1.5)
    shape = {"shape": size.shape}
    options = {**shape, "batches": size.memory}
    much = len(size.memory)
    yield Part(MEMORY, "benchmarks.ways:memory", options, length=much, once=True, alone=True)
    options = {**shape, "batches": size.evaluation}
    yield Part(EVALUATION, "benchmarks.ways:evaluation", options, length=1.5)
    options = {**shape, "batch": size.batch}
    yield Part(PROFILE, "benchmarks.ways:profile", options, setup=10, once=True)


class Bench:
    """Runs parts while there is time, and keeps what they find in a file.

    Args:
        size: how much to measure.
        ends: when the time is up, in seconds of `time.monotonic`.
        out: the file.
        facts: what else it says.
    """

    def __init__(self, size: Size, ends: float, out: Path, facts: Mapping[str, Any]) -> None:
        self.found: dict[str, list[list[Answer]]] = {}
        """Of each part the repetitions, of each of those what every worker answered."""
        self.left_out: dict[str, str] = {}
        self.size, self._ends, self._out, self._facts = size, ends, out, facts
        self._start = size.start
        self._seconds: dict[str, float] = {}

    def run(self, todo: list[Part]) -> None:
        """Run them in this order."""
        with Workers(self.size.threads) as workers:
            for part in todo:
                reason = self._reason_against(part, workers)
                if not reason:
                    reason = self._measure(part, workers)
                if reason:
                    self.left_out[part.name] = reason
                    print(f"{part.name}: left out, {reason}", flush=True)
                self.write()

    def estimate(self, part: Part, there: int = 0) -> float:
        """Return the seconds that a part takes at most, as far as known.

        Args:
            part: which.
            there: so many processes run already.
        """
        new = part.many if part.alone else max(0, part.many - there)
        start = self._start * max(1.0, new / 4) if new else 0.0  # they start side by side
        repetitions = 2 if part.once else 1 + self.size.repetitions  # the first warms up
        return start + part.setup + 2 * self.size.seconds * part.length * repetitions

    def _reason_against(self, part: Part, workers: Workers) -> str:
        if part.needs and importlib.util.find_spec(part.needs) is None:
            return f"{part.needs} is not installed"
        if part.name != MATMUL and MATMUL not in self.found:
            return "how much to measure follows from the rate of products, which is not known"
        takes, left = self.estimate(part, len(workers)), self._ends - time.monotonic()
        if takes > left:
            return f"it takes an estimated {takes:.0f} s, of which {max(0.0, left):.0f} are left"
        return ""

    def _measure(self, part: Part, workers: Workers) -> str:
        """Measure a part; return why it failed, if it did."""
        began = time.monotonic()
        patience = max(AT_LEAST, PATIENCE * self.estimate(part, len(workers)))
        by = min(self._ends, began + patience)
        if part.alone:
            workers.close()
        new, runs = part.many > len(workers), []
        try:
            workers.prepare(part.many, part.way, {**part.options, **self._amount(part)}, by)
            if new and part.many == 1:
                self._start = time.monotonic() - began
            for _ in range(1 if part.once else self.size.repetitions):
                runs.append(workers.go(part.many, by))
        except WorkerError as error:
            return f"it failed: {error}"
        self.found[part.name] = runs
        self._seconds[part.name] = round(time.monotonic() - began, 1)
        print(f"{part.name}: {self._seconds[part.name]:.0f} s", flush=True)
        return ""

    def _amount(self, part: Part) -> dict[str, int]:
        """Return how many examples make a repetition last about `Size.seconds`, all batches full.

        Contributors that share the GPU share them, too.
        """
        if "batch" not in part.options and part.name != EVALUATION:
            return {}
        peak = median(run[0]["flops"] for run in self.found[MATMUL])
        batch = part.options.get("batch", max(self.size.evaluation))
        tokens = part.options.get("tokens") or 39  # MNLI's mean
        rate = REACHED * peak / (6 * self.size.weights * tokens)  # examples a second
        batches = max(4, round(rate * self.size.seconds / part.many / batch))
        name = "random" if part.way.startswith("benchmarks.finetune") else "examples"
        return {name: batches * batch}

    def write(self) -> None:
        """Write the file, at once or not at all."""
        text = {
            **self._facts,
            "size": self.size.shape,
            "seconds": self._seconds,
            "left_out": self.left_out,
            "rows": rows(self.found, self.size),
            "parts": self.found,
        }
        self._out.parent.mkdir(parents=True, exist_ok=True)
        new = self._out.with_name(f"{self._out.name}.new")
        new.write_text(json.dumps(text, indent=1) + "\n")
        os.replace(new, self._out)


def rows(found: Mapping[str, list[list[Answer]]], size: Size) -> list[results.Row]:
    """Return the comparisons that the parts allow, as `benchmarks.results` keeps them."""
    kept = []
    peaks = [run[0]["flops"] for run in found.get(MATMUL, [])]
    if peaks:
        teras = [peak / 1e12 for peak in peaks]
        kept.append(results.row("products of matrices", teras, "", None, "TFLOP/s"))

    def rate(name: str) -> list[float]:
        """Of each repetition: examples a second, all workers together, until the last is done."""
        return [sum(a["examples"] for a in r) / max(a["seconds"] for a in r) for r in found[name]]

    def share(name: str) -> str:
        of = [sum(a["flop"] for a in r) / max(a["seconds"] for a in r) for r in found[name]]
        return f"{100 * median(of) / median(peaks):.0f} % of the matmul rate"

    for lengths in LENGTHS:
        ours, trainer = f"ours, {lengths}", f"trainer-best, {lengths}"
        if ours not in found:
            continue
        what = f"finetune, {size.shape}, {lengths}, batch {size.batch}"
        peer, theirs = ("Trainer, best flags", rate(trainer)) if trainer in found else ("", None)
        kept.append(results.row(what, rate(ours), peer, theirs, "examples/s", share(ours)))
        for variant in ("packed", "compiled"):
            name = f"{variant}, {lengths}"
            if name in found:
                note = str(found[name][0][0]["with"])
                kept.append(
                    results.row(
                        f"{what}, {variant}", rate(name), "the loop as it is", rate(ours),
                        "examples/s", note,
                    )
                )  # fmt: skip
    one = f"{size.together[0]} at once"
    for many in size.together:
        name = f"{many} at once"
        if name in found and one in found:
            what = f"finetune, {size.shape}, MNLI's lengths, batch {size.shared_batch}, {name}"
            peer, theirs = ("", None) if name == one else (one, rate(one))
            kept.append(results.row(what, rate(name), peer, theirs, "examples/s", share(name)))
    for batch, said in (found[MEMORY][0][0] if MEMORY in found else {}).items():
        what = f"memory of a finetuning, {size.shape}, batch {batch}"
        gigabytes = [said[key] / 1e9 for key in ("estimated", "measured")]
        note = "ours is the estimate"
        kept.append(results.row(what, gigabytes[0], results.MEASURED, gigabytes[1], "GB", note))
    if EVALUATION in found:
        runs = [run[0] for run in found[EVALUATION]]
        used = str(size.evaluation[0])
        for batch in runs[0]:
            what = f"evaluation, {size.shape}, MNLI's lengths, batches of {batch}"
            theirs = None if batch == used else [run[used] for run in runs]
            peer = f"of {used}" if theirs else ""
            rates = [run[batch] for run in runs]
            kept.append(results.row(what, rates, peer, theirs, "examples/s"))
    return kept


def tell(bench: Bench) -> None:
    """Print what was found, and what was not measured."""
    for row in rows(bench.found, bench.size):
        peer = f", {row['peer']}: {row['theirs']:.4g}" if row["peer"] else ""
        spread = "" if row["spread"] is None else f" (spread {row['spread']:.2g})"
        note = f"; {row['note']}" if row["note"] else ""
        print(f"{row['what']}: {row['ours']:.4g} {row['unit']}{spread}{peer}{note}")
    for run in bench.found.get(PROFILE, []):
        print(f"profile: busy {run[0]['busy']:.0%} of the time, of which")
        for event in run[0]["top"]:
            print(f"  {event['share']:6.1%} {event['calls']:7} x {event['name'][:80]}")
    if bench.left_out:
        print(f"left out: {'; '.join(bench.left_out)}")


def main() -> None:
    """Measure, in the time that is given."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="of all together")
    parser.add_argument("--variants", action="store_true", help="packed sequences, torch.compile")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"))
    chosen = parser.parse_args()
    gpu = torch.cuda.is_available()
    size = LARGE if gpu else SMALLEST
    kind = machine.name()
    print(kind if gpu else f"no GPU here ({kind}): the smallest size, on cores", flush=True)
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": kind,
        "gpu": gpu,
        "versions": results.versions(),
        "minutes": chosen.minutes,
    }
    bench = Bench(size, began + 60 * chosen.minutes, chosen.out, facts)
    bench.run([*parts(size, chosen.variants)])
    tell(bench)
    if not bench.found:
        raise SystemExit(f"nothing was measured in {chosen.minutes:g} --minutes (see above)")
    print(f"{chosen.out}: {(time.monotonic() - began) / 60:.1f} minutes of {chosen.minutes:g}")


if __name__ == "__main__":
    main()
