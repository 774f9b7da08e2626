"""Finetuning throughput: our loop against `transformers.Trainer`, same data, model and epochs.

    python -m benchmarks.finetune [--tasks rotten_tomatoes,mrpc] [--examples 1600] [--epochs 2]
    python -m benchmarks.finetune --random 40000 [--tokens 128]     # RoBERTa-base, random weights

Trainer's defaults, Trainer's best flags (bf16 where that is fast, grouped by length, fused
AdamW), and our loop, alone and as several contributors at once (``--together``: by default one per
core, as in a simulation; 2, 4 and 8 on a GPU). Each is a process of its own; loading, tokenising
and the test are not counted. Real tasks and MiniLM come from COLD_FLOWER_REAL, else the demo's are
taken. ``--random`` needs no data: random tokens, of lengths like MNLI's (mean 39) or all of
``--tokens``. Printed, too: each way's products with weights, padding left out, as a share of the
machine's measured rate of products (bf16, or fp32 where bf16 is slow).
"""

import argparse
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks import results
from benchmarks.machine import matmul_rate, seconds
from benchmarks.work import Work, real
from benchmarks.work import random as random_work
from benchmarks.workers import Answer, WorkerError, Workers
from cold_flower.config import Finetune
from cold_flower.models.classifier import device
from cold_flower.training.finetune import finetune
from cold_flower.training.scoring import bf16_is_fast, score

BATCH, RATE = 32, 1e-4


def ours(work: Work, batch: int, epochs: int, seed: int) -> Answer:
    """Run our loop."""
    model = work.model()
    options = Finetune(learning_rate=RATE, batch_size=batch, max_epochs=epochs)

    def run() -> None:
        finetune(model, work.train, None, options=options, metric="accuracy", seed=seed)

    return {"seconds": seconds(run), **result(model, work, epochs)}


def trainer(work: Work, batch: int, epochs: int, *, best: bool) -> Answer:
    """Run transformers' loop."""
    from transformers import Trainer, TrainingArguments

    model = work.model(plain=True)
    lengths = work.train.lengths().tolist()

    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        return {**work.train.batch(rows), "labels": work.train.labels_of(rows)}

    class Lengths(Trainer):  # type: ignore[misc]  # untyped
        """Trainer knows the lengths without reading all rows before its first step."""

        def _get_train_sampler(self, *_: Any) -> Any:
            from transformers.trainer_pt_utils import LengthGroupedSampler

            if not best:
                return super()._get_train_sampler()
            return LengthGroupedSampler(batch, lengths=lengths)

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        num_train_epochs=epochs,
        learning_rate=RATE,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        bf16=best and bf16_is_fast(device()),
        use_cpu=device().type == "cpu",
        dataloader_num_workers=4 if best and device().type == "cuda" else 0,
    )
    rows: Any = range(len(work.train))  # a dataset of indices
    made = Lengths(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    return {"seconds": seconds(made.train), **result(model, work, epochs)}


def result(model: Any, work: Work, epochs: int) -> Answer:
    """Return what was done, and how well it was learnt."""
    examples, tokens = len(work.train) * epochs, float(work.train.lengths().sum()) * epochs
    flop = multiplied(model, work, tokens / examples) * examples
    done = {"examples": examples, "tokens": tokens, "flop": flop}
    return {**done, "accuracy": score(model, work.test, "accuracy", "auto")} if work.test else done


def multiplied(model: Any, work: Work, tokens: float) -> float:
    """Return the FLOP of an example's products with weights: 6 a weight and row, 2 of them forward.

    A layer sees all tokens of an example or, as the head does, one. (The keys' and values' weights
    of a `FirstToken`, multiplied with a row for each example, are left out.)
    """
    flop = 0.0

    def count(layer: Any, given: tuple[Any, ...], _: Any) -> None:
        nonlocal flop
        rows = given[0].numel() // layer.in_features
        flop += 6 * layer.weight.numel() * (tokens if rows > 1 else 1)

    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        model(**work.train.take([0]).to(model.device).batch([0]))
    for hook in hooks:
        hook.remove()
    return flop


def prepare(
    way: str, task: str, *, examples: int, epochs: int, batch: int, random: int, tokens: int,
    seed: int, shape: str = "RoBERTa-base",
) -> Callable[[], Answer]:  # fmt: skip
    """Load the work and warm up; return what is measured."""
    work = random_work(random, tokens, shape) if random else real(task, examples)

    def run(work: Work, epochs: int, seed: int) -> Answer:
        if way == "ours":
            return ours(work, batch, epochs, seed)
        return trainer(work, batch, epochs, best=way == "trainer-best")

    few = work.train.take(range(min(batch * 4, len(work.train))))
    run(replace(work, train=few, test=None), 1, 1)  # kernels are loaded, memory is taken
    return partial(run, work, epochs, seed)


def rates(answers: Sequence[Answer]) -> dict[str, float]:
    """Return what processes side by side did a second, all of them, until the last was done."""
    slowest = max(f["seconds"] for f in answers)
    summed = {key: sum(f[key] for f in answers) for key in ("examples", "tokens", "flop")}
    accuracy = sum(f.get("accuracy", math.nan) for f in answers) / len(answers)
    return {**{key: value / slowest for key, value in summed.items()}, "accuracy": accuracy}


def measure(
    way: str, task: str, chosen: argparse.Namespace, many: int = 1
) -> list[dict[str, float]]:
    """Run one way, in so many processes that share the cores; return each repetition's rates."""
    keys = ("examples", "epochs", "batch", "random", "tokens")
    options = {"way": way, "task": task, **{key: getattr(chosen, key) for key in keys}}
    with Workers() as workers:
        try:
            workers.prepare(many, "benchmarks.finetune:prepare", options)
            return [rates(workers.go(many)) for _ in range(chosen.repeat)]
        except WorkerError as error:
            raise SystemExit(f"{way} failed: {error}") from error


def compare(task: str, chosen: argparse.Namespace, peak: float) -> None:
    """Run all ways on a task; print and keep what they reach, of ``peak`` FLOP/s."""
    cores = len(os.sched_getaffinity(0))
    together = chosen.together or ([cores] if device().type == "cpu" else [2, 4, 8])
    ways = {"trainer": ("trainer", 1), "trainer-best": ("trainer-best", 1), "ours": ("ours", 1)}
    ways |= {f"ours x {many}": ("ours", many) for many in together if many > 1}
    found: dict[str, dict[str, list[float]]] = {}  # way, figure: its repetitions
    for name, (way, many) in ways.items():
        runs = measure(way, task, chosen, many)
        f = found[name] = {key: [run[key] for run in runs] for key in runs[0]}
        print(
            f"{task:16} {name:14} {median(f['examples']):8.1f} examples/s "
            f"{median(f['tokens']):9.0f} tokens/s, "
            f"{100 * median(f['flop']) / peak:.0f} % of {peak / 1e9:.0f} GFLOP/s, "
            f"accuracy {f['accuracy'][0]:.3f}",
            flush=True,
        )
    what = f"finetune, {task}, {chosen.random or chosen.examples} examples"
    what += f" of {chosen.tokens} tokens" if chosen.tokens else ""
    what += f" x {chosen.epochs}, batch {chosen.batch}"
    for name, (way, many) in ways.items():
        if way != "ours":
            continue
        mine = found[name]
        share = f"{100 * median(mine['flop']) / peak:.0f} % of the matmul rate"
        for theirs, peer in (("trainer", "Trainer"), ("trainer-best", "Trainer, best flags")):
            other = found[theirs]
            note = f"accuracy {mine['accuracy'][0]:.3f} and {other['accuracy'][0]:.3f}; {share}"
            note = share if chosen.random else note
            at_once = f"{what}, {many} at once" if many > 1 else what
            results.keep(at_once, mine["examples"], peer, other["examples"], "examples/s", note)


def main() -> None:
    """Compare on each task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    there = "COLD_FLOWER_REAL" in os.environ
    parser.add_argument("--tasks", default="rotten_tomatoes,mrpc" if there else "weather")
    parser.add_argument("--examples", type=int, default=1600)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--random", type=int, default=0, help="so many examples of random tokens")
    parser.add_argument("--tokens", type=int, default=0, help="of each; 0 = as MNLI's")
    parser.add_argument("--together", type=int, nargs="*", help="contributors at once")
    parser.add_argument("--repeat", type=int, default=1, help="measure so often, for the spread")
    chosen = parser.parse_args()
    peak = matmul_rate()
    for task in ["random"] if chosen.random else chosen.tasks.split(","):
        compare(task, chosen, peak)


if __name__ == "__main__":
    main()
