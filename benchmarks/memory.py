"""The memory that one finetuning takes, against the estimate that contributors are shared out by.

    python -m benchmarks.memory

The ClientApp answers one message in a process of its own, on texts of `finetune.max-length`
tokens; measured is the process's peak (resident memory without a GPU; with one what torch reserved
there, and a CUDA context). Random BERTs whose words all occur.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.machine import peak_bytes
from benchmarks.models import bert
from cold_flower.config import Config
from cold_flower.data import demo
from cold_flower.models import demo as demo_model
from cold_flower.models.base import load_base
from cold_flower.models.classifier import device
from cold_flower.models.starting import starting_model
from cold_flower.runtime.machine import this_machine
from cold_flower.runtime.resources import footprint
from cold_flower.runtime.simulate import LARGE_PAGES

SHAPES = {"6 x 384": (6, 384), "12 x 768": (12, 768)}
LENGTH = 128
SUITE = """
[tasks.words]
source = "files"
path = "."
text = ["text"]
label = "label"
labels = ["a", "b"]
splits = { train = "train", validation = "test", test = "test" }
"""


def write(folder: Path, layers: int, hidden: int) -> None:
    """Write a model and a task of texts that fill it."""
    words = [word for concept in demo.vocabulary() for word in concept]
    chance = random.Random(0)
    for split, size in (("train", 600), ("test", 20)):
        rows = (
            {"text": " ".join(chance.choices(words, k=LENGTH)), "label": i % 2} for i in range(size)
        )
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "suite.toml").write_text(SUITE)
    bert(folder, layers, hidden, demo_model.config().vocab_size)


def configuration(folder: Path, batch: int, precision: str) -> Config:
    """Return the run's configuration."""
    keys: dict[str, Any] = {
        "suite": f"{folder}/suite.toml",
        "contributors-per-iteration": 0,
        "base-model": f"{folder}/model",
        "finetune.batch-size": batch,
        "finetune.max-length": LENGTH,
        "finetune.max-examples": 2 * batch,
        "finetune.max-epochs": 1,
        "finetune.precision": precision,
    }
    return Config.from_flat(keys)


def peak(config: Config) -> float:
    """Answer a message here; return the peak in bytes."""
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from cold_flower import answers
    from strategies import records

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    body = starting_model(load_base(config.base_model), 0)[1]
    asked: dict[str, Any] = {"iteration": 1, "base": "none", "seed": 0}
    content = RecordDict(
        {records.ARRAYS: records.pack(body.items()), records.CONFIG: ConfigRecord(asked)}
    )
    del body
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), dict(config.flat()))
    reply = answers.train(Message(content, 1, "train"), context)
    if reply.has_error():
        raise SystemExit(reply.error.reason)
    return peak_bytes()


def main() -> None:
    """Measure each model and batch size; print the estimate beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs=3, metavar=("FOLDER", "BATCH", "PRECISION"), help=argparse.SUPPRESS
    )
    parser.add_argument("--batches", default="16,64")
    parser.add_argument("--precision", default="auto")
    chosen = parser.parse_args()
    if chosen.only:
        folder, batch, precision = chosen.only
        print(peak(configuration(Path(folder), int(batch), precision)))
        return
    bf16 = this_machine().bf16
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            write(folder, *shape)
            for batch in map(int, chosen.batches.split(",")):
                given = ["--only", made, str(batch), chosen.precision]
                command = [sys.executable, "-m", "benchmarks.memory", *given]
                environment = {**LARGE_PAGES, **os.environ, "COLD_FLOWER_HOME": f"{made}/home"}
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                if done.returncode:
                    raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
                measured = float(done.stdout.splitlines()[-1]) / 1e9
                config = configuration(folder, batch, chosen.precision)
                base, cores = load_base(config.base_model), device().type == "cpu"
                said = footprint(config, base, bf16=bf16, cores=cores) / 1e9
                what = f"memory of a finetuning, BERT of {name}, batch {batch}, {chosen.precision}"
                print(f"{what}: estimated {said:.2f} GB, measured {measured:.2f} GB", flush=True)
                results.keep(what, said, results.MEASURED, measured, "GB", "ours is the estimate")


if __name__ == "__main__":
    main()
