"""What the paper's main experiment would cost on this machine, before and after our means.

    python -m benchmarks.cost [--examples 400]

One seed of `multitask` (section 5.1): 30 iterations of 8 contributions, and 35 datasets finetuned
and probed at each of 31 bases; RoBERTa-base of random weights, random tokens of MNLI's lengths.
Measured here: examples a second of Trainer, of our loop, of a forward pass (the library's, and
ours), and of the probe on cached features. Assumed: an example is as long as MNLI's (mean 39
tokens), and finetuning on n examples sees n, and 256,000 more that do not improve it, but 10 n at
most. Before: Trainer's defaults, a head trained through the body, and contributions beside the
evaluations; after: what `cold-flower` does.
"""

import argparse
from functools import partial

from benchmarks import finetune, results
from benchmarks.machine import seconds
from benchmarks.sizes import SIZES
from benchmarks.work import random
from cold_flower.config import Config, split
from cold_flower.runtime.experiments import configure
from cold_flower.training import probe

BATCH = 32


def rates(examples: int) -> dict[str, float]:
    """Return examples a second of each kind of work."""
    chosen = argparse.Namespace(
        examples=0, epochs=1, batch=BATCH, random=examples, tokens=0, repeat=1
    )
    found = {
        way: finetune.measure(way, "random", chosen)[0]["examples"] for way in ("trainer", "ours")
    }
    work = random(examples)
    model, plain, options = work.model(), work.model(plain=True), Config().probe
    probe.extract_features(model, work.train.take(range(BATCH)), "auto")  # warm
    known = probe.extract_features(model, work.train, "auto")

    def head() -> None:
        probe.train_head(model, known, work.train.labels, options=options, batch_size=BATCH, seed=0)

    for name, body in (("forward", model), ("plain", plain)):
        taken = seconds(partial(probe.extract_features, body, work.train, "auto"))
        found[name] = examples / taken
    found["head"] = examples * options.epochs / seconds(head)
    return found


def main() -> None:
    """Print hours by kind of work; keep the sum."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=400)
    rate = rates(parser.parse_args().examples)
    print({way: round(value, 1) for way, value in rate.items()}, "examples/s")
    config = configure("multitask", {})
    options, epochs = config.finetune, config.probe.epochs
    sizes = [SIZES[name] for name in split(config.tasks)]
    seen = [min(options.max_epochs * n, n + options.early_stop_examples) for n in sizes]
    bases = config.iterations + 1
    contributed = config.iterations * config.contributors_per_iteration * sum(seen) / len(seen)
    finetuned, probed = bases * sum(seen), bases * sum(sizes)
    hours = {
        "contributions": (contributed / rate["trainer"], contributed / rate["ours"]),
        # Who contributes next says its base's score (`evaluate.reuse`).
        "finetuned": (finetuned / rate["trainer"], (finetuned - contributed) / rate["ours"]),
        "frozen": (
            probed * epochs / rate["plain"],
            probed / rate["forward"] + probed * epochs / rate["head"],
        ),
    }
    for name, (before, after) in hours.items():
        print(f"{name:14} {before / 3600:10,.0f} h before {after / 3600:10,.0f} h after")
    before, after = (sum(pair[i] for pair in hours.values()) / 3600 for i in (0, 1))
    results.keep("one seed of multitask, estimated", after, "Trainer, no cache", before, "h")


if __name__ == "__main__":
    main()
