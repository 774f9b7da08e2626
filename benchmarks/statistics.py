"""What a statistic of the data costs a contributor: seconds and bytes, beside its finetuning.

    COLD_FLOWER_REAL=... python -m benchmarks.statistics [--task trec_coarse] [--examples 400]

CPU time of one thread. Four epochs, as in the shipped small experiments; the Fisher information is
of 256 examples, grams of 1024, or all there are.
"""

import argparse
import os
import tempfile
import time

import torch

from cold_flower.contributors.contributor import Contributor
from cold_flower.models.starting import starting_model
from cold_flower.runtime import experiments
from strategies.fusion._statistics import KINDS


def main() -> None:
    """Print a line for each kind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="trec_coarse")
    parser.add_argument("--examples", type=int, default=400)
    chosen = parser.parse_args()
    real = os.environ["COLD_FLOWER_REAL"]
    config = experiments.merge(
        {
            **experiments.read("real_small"),
            "suite": f"{real}/data/suite.toml",
            "base-model": f"{real}/models/minilm",
            "tasks": chosen.task,
            "finetune.max-examples": chosen.examples,
        }
    )
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["COLD_FLOWER_HOME"] = folder
        me = Contributor(config, 0)
        _, body = starting_model(me.base, 0)
        size = sum(tensor.nbytes for tensor in body.values())
        me.finetune(body, iteration=1, seed=0)  # warm: tokens, pages
        alone = 0.0
        for kind in ("", *KINDS):
            started = time.process_time()
            trained, _ = me.finetune(body, iteration=1, seed=0, statistic=kind)
            taken = time.process_time() - started
            alone = alone or taken
            beside = sum(tensor.nbytes for tensor in trained.values()) - size
            print(
                f"{kind or 'none'}: {taken:.1f} s of CPU, {taken / alone - 1:+.0%}; "
                f"{beside / 1e6:.1f} MB beside {size / 1e6:.1f}"
            )


if __name__ == "__main__":
    main()
