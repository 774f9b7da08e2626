"""What an iteration costs beside finetuning and evaluation: ours against stock FedAvg.

    python -m benchmarks.overhead [--contributors 8] [--megabytes 50,200,500]

Contributors that add a constant instead of finetuning, under Flower's simulation engine with two
Ray workers; the last of three iterations is measured. Ours is the whole ``cold-flower
simulate``: messages, inbox, screening, diagnosis, fusing, publishing; once with bodies in
messages and once by reference (``transport = "shared-dir"``). FedAvg averages and keeps nothing.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.models import bert
from cold_flower.repository.journal import PROGRESS, Journal
from cold_flower.runtime.simulate import LARGE_PAGES

ITERATIONS = 3
SHAPES = {50: (1, 768, 7_000), 200: (4, 768, 28_000), 500: (12, 768, 50_265)}  # see `bert`

NO_OP = """

def finetune(self, body, **_):
    from zlib import crc32
    step = 1e-4 * (1 + crc32(self.name.encode()) / 2**32)
    return {key: tensor + step for key, tensor in body.items()}, {"num-examples": 10.0}

def evaluate(self, body, chosen, **_):
    return {"num-examples": 10, **dict.fromkeys(chosen, 0.5)}, {}

Contributor.finetune, Contributor.evaluate = finetune, evaluate
"""  # at the end of what contributors run


def without_finetuning() -> None:
    """Have the contributors of this process's simulations add a constant instead."""
    from cold_flower.runtime import bundle, simulate

    real = bundle.stage

    def stage(app: Path, config: Any) -> Path:
        real(app, config)
        with (app / "cold_flower" / "contributors" / "contributor.py").open("a") as code:
            code.write(NO_OP)
        return app

    vars(simulate)["stage"] = stage  # the name that `simulate` calls


def ours(model: Path, run: Path, contributors: int, transport: str) -> None:
    """Run the demo's contributors without their finetuning; called in a process of its own."""
    from cold_flower.commands.cli import main

    without_finetuning()
    settings = {
        "base-model": str(model),
        "tasks": ",".join(_tasks()[:contributors]),
        "unseen": "",
        "contributors-per-iteration": 0,
        "iterations": ITERATIONS,
        "evaluate.every": ITERATIONS,
        "evaluate.protocols": "frozen",
        "transport": transport,
        "keep-iterations": 1,
    }
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    sys.argv = ["cold-flower", "simulate", "demo", "--run-dir", str(run), *given]
    main()


def _tasks() -> list[str]:
    from cold_flower.data.demo import TASKS

    return list(TASKS)


def last_iteration(run: Path) -> float:
    """Return the seconds from the last iteration's first message to its published base."""
    events = Journal(run).rows(PROGRESS)
    asked = next(
        e["time"] for e in events if e["line"].startswith(f"iteration {ITERATIONS}: asking")
    )
    published = next(e["time"] for e in events if e.get("published") == ITERATIONS)
    return float(published - asked)


def stock(model: Path, contributors: int) -> float:
    """Return the seconds of FedAvg's last round on the same tensors."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation
    from safetensors.torch import load_file

    from benchmarks.peers import WholeRounds

    client, server, times = ClientApp(), ServerApp(), []

    @client.train()
    def train(message: Message, context: Context) -> Message:
        import torch  # noqa: F401  # Flower decodes into torch only where that is loaded

        state = message.content.array_records["arrays"].to_torch_state_dict()
        moved = ArrayRecord({key: tensor + 1e-4 for key, tensor in state.items()})
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": moved, "metrics": metrics}), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < contributors:
            time.sleep(0.1)
        arrays = ArrayRecord(load_file(model / "model.safetensors"))
        WholeRounds(fraction_evaluate=0.0, min_available_nodes=contributors).start(
            grid,
            arrays,
            num_rounds=ITERATIONS,
            evaluate_fn=lambda *_: times.append(time.monotonic()),
        )

    resources: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0.0}
    arguments: dict[str, Any] = {"num_cpus": 2, "include_dashboard": False}
    run_simulation(
        server,
        client,
        contributors,
        backend_config={"client_resources": resources, "init_args": arguments},
    )
    return float(times[-1] - times[-2])


def measure(kind: str, model: Path, contributors: int, folder: Path) -> float:
    """Run one kind in a process of its own."""
    run = folder / f"run-{kind}"
    command = [sys.executable, "-m", "benchmarks.overhead", "--only", kind]
    command += ["--model", str(model), "--run", str(run), "--contributors", str(contributors)]
    environment = {**LARGE_PAGES, **os.environ}  # for FedAvg, too
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    if kind == "fedavg":
        return float(done.stdout.strip().splitlines()[-1])
    return last_iteration(run)


def main() -> None:
    """Measure each kind at each size; print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contributors", type=int, default=8)
    parser.add_argument("--megabytes", default="50,200,500")
    parser.add_argument("--only", choices=("fedavg", "message", "shared-dir"), help="internal")
    parser.add_argument("--model", type=Path, help="internal")
    parser.add_argument("--run", type=Path, help="internal")
    chosen = parser.parse_args()
    if chosen.only == "fedavg":
        print(stock(chosen.model, chosen.contributors))
        return
    if chosen.only:
        ours(chosen.model, chosen.run, chosen.contributors, chosen.only)
        return
    for megabytes in map(int, chosen.megabytes.split(",")):
        with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
            model = bert(Path(folder), *SHAPES[megabytes])
            found = {
                kind: measure(kind, model, chosen.contributors, Path(folder))
                for kind in ("fedavg", "message", "shared-dir")
            }
        figures = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in found.items())
        print(f"{chosen.contributors} x {megabytes} MB: {figures}", flush=True)
        for kind in ("message", "shared-dir"):
            what = f"around an iteration, {chosen.contributors} x {megabytes} MB, {kind}"
            results.keep(what, found[kind], "FedAvg", found["fedavg"], "s")


if __name__ == "__main__":
    main()
