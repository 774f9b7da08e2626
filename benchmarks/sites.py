"""Many sites at one SuperLink: what goes through it, and what it takes, with nothing trained.

    python -m benchmarks.sites [--sites 50,200] [--megabytes 5] [--iterations 2]

The coordinator is the one of docs/deployment.md, by its commands: TLS, a key for each site, a
database, `cold-flower deploy`. The sites speak Flower's own protocol of SuperNodes, each with its
key and its connection, looking for work every three seconds as SuperNodes do, but many in one
process, and answer at once: to train, with a body a little away from what came. They share the
machine with the SuperLink, so what it does a second is a lower bound.

Measured are an iteration's seconds (bodies out, bodies back, screened, fused, published), the
messages and bytes a second until the last answer, the most memory of SuperLink and of coordinator,
and the most that the SuperLink's database and its write-ahead log take on disk. The database does
one write at a time and refuses whoever has waited for five seconds (`database is locked`): that
answer is lost, as a SuperNode's is, which only logs it, and asked for once more three minutes
later. How many came in, and how many were asked for again, are figures.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import anonymous
from benchmarks.models import bert
from cold_flower.repository.journal import CONTRIBUTIONS, PROGRESS
from cold_flower.runtime.processes import descendants
from tests.federation import Federation

HIDDEN = 96
EXAMPLES, STEPS = 1000, 100
PROCESSES = 2
LOOK = 3.0  # seconds between a SuperNode's looks for work
LIMIT = 3600.0
RECIPE = """
base-model = "{model}"
iterations = {iterations}
contributors-per-iteration = 0
sites.allow = "*"
sites.minimum = {sites}
quorum = 1
wait.nodes = 900
wait.replies = {wait}
evaluate.protocols = ""
"""


def sites(folder: Path, names: list[str], address: str, model: str) -> None:
    """Be these sites until killed."""
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.supernode.fleet_http_connection import http_request_response

    def work(name: str) -> None:
        private: Any = load_ssh_private_key((folder / f"{name}.key").read_bytes(), password=None)
        with http_request_response(
            address, False, (folder / "ca.crt").read_bytes(), (private, private.public_key())
        ) as (_, receive, send, _, _, pull, push, confirm):
            while True:
                if got := receive():
                    try:
                        _serve(name, model, *got, send, pull, push, confirm)
                    except Exception as error:  # a SuperNode logs it too, and goes on
                        print(f"an answer of {name} is lost: {error}", flush=True)
                else:
                    time.sleep(LOOK)

    def for_good(name: str) -> None:
        with suppress(Exception):  # Flower's connection logs it, and ends
            work(name)
        os._exit(1)

    for name in names:
        threading.Thread(target=for_good, args=(name,), daemon=True).start()
        time.sleep(0.05)
    threading.Event().wait()


def _serve(
    name: str, model: str, stub: Any, tree: Any, send: Any, pull: Any, push: Any, confirm: Any
) -> None:
    """Fetch a message's objects, answer, and send the answer's, as a SuperNode does."""
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        iterate_object_tree,
    )
    from flwr.supercore.inflatable.inflatable_utils import (
        inflate_object_from_contents,
        pull_objects,
        push_objects,
    )

    run = stub.metadata.run_id
    ids = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
    contents = pull_objects(ids, partial(pull, run))
    confirm(run, stub.metadata.message_id)
    message: Any = inflate_object_from_contents(stub.metadata.message_id, contents)
    message.metadata.__dict__["_message_id"] = stub.metadata.message_id  # a reply names it
    reply = answer(name, model, message)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    wanted, session = send(reply, get_object_tree(reply), 0.1)
    push_objects(
        get_all_nested_objects(reply), partial(push, run, session), object_ids_to_push=wanted
    )


def answer(name: str, model: str, message: Any) -> Any:
    """Answer as the protocol wants it (docs/messages.md), without data."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

    kind = message.metadata.message_type.partition(".")[0]
    content: dict[str, Any]
    about: dict[str, Any]
    if kind == "query":
        about = {"name": name, "task": name, "metric": "accuracy", "examples": EXAMPLES}
        content = {"contributor": ConfigRecord({**about, "protocol": 1, "model": model})}
    else:  # train: nothing is evaluated
        config = message.content["config"]
        draw = np.random.default_rng([int(config["iteration"]), *name.encode()])
        arrays = {
            key: array.numpy() + 1e-3 * draw.standard_normal(array.shape, np.float32)
            for key, array in message.content["arrays"].items()
        }
        about = {"contributor": name, "iteration": config["iteration"], "base": config["base"]}
        content = {
            "arrays": ArrayRecord({key: Array(values) for key, values in arrays.items()}),
            "metrics": MetricRecord({"num-examples": EXAMPLES, "train-loss": 0.5, "steps": STEPS}),
            "contribution": ConfigRecord(about),
        }
    return Message(RecordDict(content), reply_to=message)


def register(folder: Path, names: list[str]) -> None:
    """Make a key for each and register it at the SuperLink that FLWR_HOME's config names."""
    from cryptography.hazmat.primitives import serialization as form
    from flwr.cli.flower_config import read_superlink_connection
    from flwr.cli.utils import init_http_client_from_connection
    from flwr.proto.control_pb2 import RegisterNodeRequest
    from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

    client = init_http_client_from_connection(read_superlink_connection("partners"))
    for name in names:
        private, public = generate_key_pairs()
        (folder / f"{name}.key").write_bytes(
            private.private_bytes(
                form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption()
            )
        )
        client.RegisterNode(RegisterNodeRequest(public_key=public_key_to_bytes(public), name=name))


def measure(count: int, megabytes: float, iterations: int) -> dict[str, float]:
    """Run a federation of so many sites; return figures by name."""
    from cold_flower.models.base import load_base

    words = int(megabytes * 1e6 / 4 - 2 * 12 * HIDDEN**2) // HIDDEN - 512
    names = [f"site-{i:04d}" for i in range(count)]
    with tempfile.TemporaryDirectory(prefix="sites-") as name:
        folder = Path(name)
        model = bert(folder, 2, HIDDEN, max(words, 2000))
        size = (model / "model.safetensors").stat().st_size
        federation = Federation(folder / "federation")
        home = federation.coordinator.folder
        started: list[subprocess.Popen[bytes]] = []

        def start(what: str, *more: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "benchmarks.sites", "--part", what]
            with (home / f"{what}.log").open("ab") as log:
                return subprocess.Popen(
                    [*command, "--folder", str(home), *more],
                    env=federation.coordinator.env, stdout=log, stderr=log,
                )  # fmt: skip

        try:
            federation.open()
            if start("register", "--names", ",".join(names)).wait():
                raise SystemExit((home / "register.log").read_text()[-2000:])
            sha256 = load_base(str(model)).sha256
            for part in range(PROCESSES):
                own = ",".join(names[part::PROCESSES])
                where = f"127.0.0.1:{federation.port}"
                given = ("--names", own, "--address", where, "--model", sha256)
                started.append(start("sites", *given))
            recipe = RECIPE.format(
                model=model, iterations=iterations, sites=count, wait=600 + 6 * count
            )
            run = federation.deploy(recipe, "run", "< /dev/null", f"> {home}/deploy.log", "2>&1")
            used = _watch(federation, run, started)
            if run.returncode:
                raise SystemExit((home / "deploy.log").read_text()[-3000:])
            return figures(federation, count, size, used)
        finally:
            for process in started:
                process.kill()
            federation.close()


def _watch(federation: Federation, run: Any, sites: list[Any]) -> dict[str, float]:
    """Sample until the run has ended; return the most that was seen."""
    most = {"SuperLink MB": 0.0, "coordinator MB": 0.0, "database MB": 0.0}
    superlink = federation.coordinator.processes["superlink"].pid
    began, server = time.monotonic(), 0
    while run.poll() is None:
        for key, found in (
            # Before the ServerApp has said which of the SuperLink's processes it is, its memory
            # would count.
            ("SuperLink MB", sum(map(anonymous, _alone(superlink, server))) if server else 0.0),
            ("coordinator MB", anonymous(server)),
            ("database MB", sum(_sizes(federation.coordinator.folder))),
        ):
            most[key] = max(most[key], found / 1e6)
        if not server:
            rows = federation.rows("run", PROGRESS)
            server = next((row["server"] for row in rows if "server" in row), 0)
        if any(process.poll() is not None for process in sites):
            logs = ("sites", "superlink", "deploy")
            raise SystemExit("sites ended\n" + "\n".join(map(federation.coordinator.log, logs)))
        if time.monotonic() - began > LIMIT:
            raise SystemExit(f"not within {LIMIT:g} s")
        time.sleep(0.3)
    return most


def _alone(superlink: int, server: int) -> Iterator[int]:
    """Yield the SuperLink's processes, without the ServerApp that it starts."""
    theirs = descendants(server)
    yield from (pid for pid in descendants(superlink) if pid not in theirs)


def _sizes(folder: Path) -> Iterator[float]:
    for path in folder.glob("state.db*"):
        with suppress(OSError):
            yield float(path.stat().st_size)


def figures(
    federation: Federation, count: int, size: int, used: dict[str, float]
) -> dict[str, float]:
    """Read the figures of a run out of what it left."""
    events = federation.rows("run", PROGRESS)
    last = max(e["iteration"] for e in events if "iteration" in e)
    asked, *_, back = (e["time"] for e in events if _of(e, last))
    again = sum(e["line"].endswith("asked once more") for e in events)
    (ready,) = (e["time"] for e in events if e["line"].startswith(f"iteration {last} published"))
    whole = ready - asked
    rows = federation.rows("run", CONTRIBUTIONS)
    came = [row for row in rows if (row["iteration"], row["verdict"]) == (last, "accepted")]
    return {
        "answers": len(came),
        "asked again": again,
        "body MB": size / 1e6,
        "iteration s": whole,
        "last answer after s": back - asked,
        "messages a second": (count + len(came)) / (back - asked),
        "MB a second": (count + len(came)) * size / 1e6 / (back - asked),
        **used,
    }


def _of(event: Mapping[str, Any], iteration: int) -> bool:
    """Return whether an event tells that an iteration began, or that a contribution is good."""
    if event["line"].startswith(f"iteration {iteration}: asking"):
        return True
    arrived = {"phase": "finetune", "iteration": iteration, "verdict": "accepted"}
    return arrived.items() <= event.items()


def main() -> None:
    """Measure each number of sites; print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", default="50,200")
    parser.add_argument("--megabytes", type=float, default=5.0)
    parser.add_argument("--iterations", type=int, default=2)
    for internal in ("part", "folder", "names", "address", "model"):
        parser.add_argument(f"--{internal}", help="internal")
    chosen = parser.parse_args()
    if chosen.part == "register":
        register(Path(chosen.folder), chosen.names.split(","))
    elif chosen.part == "sites":
        sites(Path(chosen.folder), chosen.names.split(","), chosen.address, chosen.model)
    else:
        for count in map(int, chosen.sites.split(",")):
            found = measure(count, chosen.megabytes, chosen.iterations)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            print(f"{count} sites: {shown}", flush=True)


if __name__ == "__main__":
    main()
