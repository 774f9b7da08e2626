"""The linear probe on cached features against training the head through the body.

    python -m benchmarks.probe

Both train the same head on the same 360 examples of a demo task for the same number of
epochs, on a random RoBERTa of 6 layers of 256; the naive way runs the frozen body on
every batch of every epoch.
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch

from benchmarks import results
from cold_flower.config import Config
from cold_flower.contributors.contributor import Contributor
from cold_flower.data.encode import EncodedSplits
from cold_flower.data.plan import resolve
from cold_flower.models.base import Base, load_base
from cold_flower.models.body import State
from cold_flower.models.classifier import classifier
from cold_flower.models.starting import starting_model
from cold_flower.training import protocols as protocols
from cold_flower.training.finetune import finetune
from cold_flower.training.scoring import score

EPOCHS = 20


def naive(base: Base, body: State, data: EncodedSplits, config: Config) -> float:
    """Freeze the body's parameters and finetune as usual."""
    model = classifier(base, body, labels=data.labels, kind=data.kind, seed=0, plain=True)
    model.base_model.requires_grad_(False)
    options = replace(config.finetune, max_epochs=EPOCHS, learning_rate=config.probe.learning_rate)
    finetune(model, data.train, None, options=options, metric=data.metric, seed=0)
    return score(model, data.test, data.metric, options.precision)


def main() -> None:
    """Time both and print the ratio."""
    os.environ["COLD_FLOWER_HOME"] = tempfile.mkdtemp()
    torch.set_num_threads(1)
    config = resolve(Config.from_flat({"finetune.batch-size": 32, "probe.epochs": EPOCHS}))
    data = Contributor(config, 0).splits()
    tiny = load_base("demo")
    larger = {"hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 1024}
    shape = type(tiny.config)(**{**tiny.config.to_dict(), **larger})
    base = replace(tiny, config=shape)
    _, body = starting_model(base, 0)
    ways: dict[str, Callable[[], float]] = {
        "naive": lambda: naive(base, body, data, config),
        "cached": lambda: protocols.frozen(base, body, data, config, 0),
    }
    seconds: dict[str, list[float]] = {}
    for name, often in (("naive", 1), ("cached", 3)):  # the naive way takes half a minute
        seconds[name] = []
        for _ in range(often):
            started = time.perf_counter()
            value = ways[name]()
            seconds[name].append(time.perf_counter() - started)
        taken = median(seconds[name])
        print(f"{name:8} {EPOCHS} epochs: {taken:.2f} s, test accuracy {value:.3f}")
    what, peer = f"linear probe, {EPOCHS} epochs", "through the body"
    results.keep(what, seconds["cached"], peer, seconds["naive"], "s")


if __name__ == "__main__":
    main()
