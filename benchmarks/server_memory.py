"""Peak anonymous memory of the server process: our strategy against stock FedAvg.

    python -m benchmarks.server_memory [--contributors 8] [--megabytes 500]

Each strategy runs in a process of its own, under Flower's simulation engine with two Ray
workers, for two rounds on a synthetic body. Anonymous memory (RssAnon) is sampled every
20 ms; mapped Ray pages and mapped files do not count, for both.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from benchmarks import results
from benchmarks.peers import WholeRounds
from cold_flower.runtime.simulate import LARGE_PAGES
from strategies import records
from strategies.cold_fusion import ColDFusion
from strategies.collecting import Collector
from strategies.fusion import load
from strategies.inbox import Inbox
from strategies.participants import Member, Participants
from strategies.turns import Together

ROUNDS = 2
TENSORS = 20


def contribute(message: Message, context: Context) -> Message:
    """Answer with the body moved by a constant."""
    config = records.config_of(message.content, records.CONFIG)
    name = f"c{context.node_config['partition-id']}"
    body = ((k, t + 1) for k, t in records.unpack(message.content.array_records[records.ARRAYS]))
    about = {"contributor": name, "iteration": config.get("iteration", 0)}
    about["base"] = config.get("base", "")
    return Message(records.train_reply(body, {records.EXAMPLES: 1}, about), reply_to=message)


def ask_names(message: Message, context: Context) -> Message:
    """Answer a query with the name."""
    about = ConfigRecord({"name": f"c{context.node_config['partition-id']}"})
    content = RecordDict({records.CONTRIBUTOR: about, records.METRICS: MetricRecord()})
    return Message(content, reply_to=message)


class Peak(threading.Thread):
    """Sample this process's RssAnon."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0

    def run(self) -> None:
        """Keep the highest value seen."""
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self.bytes = max(self.bytes, int(line.split()[1]) * 1024)
            time.sleep(0.02)


def one(kind: str, contributors: int, megabytes: int) -> dict[str, float]:
    """Run one strategy here; return peak bytes and seconds."""
    client, server = ClientApp(), ServerApp()
    client.train()(contribute)
    client.query()(ask_names)
    peak = Peak()
    peak.start()
    rows = megabytes * 2**20 // TENSORS // 4 // 1024

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        while len(nodes := list(grid.get_node_ids())) < contributors:
            time.sleep(0.1)
        body = ((f"t{i}", torch.zeros(rows, 1024)) for i in range(TENSORS))
        arrays = records.pack(body)
        if kind == "fedavg":
            stock = WholeRounds(fraction_evaluate=0.0, min_available_nodes=contributors)
            stock.start(grid, arrays, num_rounds=ROUNDS)
            return
        participants = Participants(_ask(grid, nodes))
        with tempfile.TemporaryDirectory() as folder:
            inbox = Inbox(Collector(grid, Path(folder), participants, turns=Together(3)))
            ColDFusion(load("average"), inbox=inbox).start(
                inbox, arrays, num_rounds=ROUNDS, evaluate_fn=lambda r, _: inbox.drop({})
            )

    started = time.monotonic()
    run_simulation(
        server,
        client,
        contributors,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2, "include_dashboard": False},
        },
    )
    return {"peak": peak.bytes, "seconds": time.monotonic() - started}


def _ask(grid: Grid, nodes: list[int]) -> list[Member]:
    asked = [Message(RecordDict(), node, "query") for node in nodes]
    return [
        Member(
            str(records.config_of(reply.content, records.CONTRIBUTOR)["name"]),
            reply.metadata.src_node_id,
        )
        for reply in grid.send_and_receive(asked, timeout=60)
    ]


def main() -> None:
    """Run both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contributors", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--only", choices=("cold-fusion", "fedavg"))
    chosen = parser.parse_args()
    if chosen.only:
        print(json.dumps(one(chosen.only, chosen.contributors, chosen.megabytes)))
        return
    found = {}
    for kind in ("fedavg", "cold-fusion"):
        command = [sys.executable, "-m", "benchmarks.server_memory", "--only", kind]
        command += ["--contributors", str(chosen.contributors)]
        command += ["--megabytes", str(chosen.megabytes)]
        environment = {**LARGE_PAGES, **os.environ}
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        found[kind] = json.loads(done.stdout.strip().splitlines()[-1])
        print(
            f"{kind:12} {chosen.contributors} x {chosen.megabytes} MB, {ROUNDS} rounds: "
            f"peak RssAnon {found[kind]['peak'] / 1e9:.2f} GB, {found[kind]['seconds']:.0f} s",
            flush=True,
        )
    what = f"the server's memory, {chosen.contributors} x {chosen.megabytes} MB"
    peaks = [found[kind]["peak"] / 1e9 for kind in ("cold-fusion", "fedavg")]
    results.keep(what, peaks[0], "FedAvg", peaks[1], "GB")


if __name__ == "__main__":
    main()
