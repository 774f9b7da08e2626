"""A run without Flower's engine: both apps in this process, each message through its bytes.

What Ray, the SuperLink and processes of their own add is test_simulation.py's to show; here a run
takes seconds instead of the minute that six processes need to import torch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto

from cold_flower import client_app, server_app
from cold_flower.config import Config
from cold_flower.repository.journal import WORKERS
from cold_flower.runtime import flower
from cold_flower.runtime.events import Events
from tests.conftest import FakeGrid

FIRST_NODE = 1000


def simulate(
    config: Config,
    contributors: int,
    allocation: Any,
    show: Callable[[dict[str, Any]], None],
    again: str,
) -> None:
    """Stand in for `cold_flower.runtime.simulate.simulate`."""
    run_dir, settings = Path(config.run_dir), config.flat()

    def answer(message: Message) -> Message:
        index = message.metadata.dst_node_id - FIRST_NODE
        node = {"partition-id": index, "num-partitions": contributors}
        reply = client_app.app(_sent(message), Context(1, 1, node, RecordDict(), settings))
        reply.metadata.__dict__["_message_id"] = f"reply to {message.metadata.message_id}"
        return _sent(reply)

    events = Events(run_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLD_FLOWER_HOME", str(run_dir / "contributors"))
        patch.setenv(WORKERS, str(allocation.workers))
        status = "finished:completed"
        try:
            server_app.app(
                FakeGrid(answer, range(FIRST_NODE, FIRST_NODE + contributors)),
                Context(1, 0, {}, RecordDict(), settings),
            )
        except Exception:  # as Flower does; result.json has the cause
            status = "finished:failed"
    for event in events.new():
        show(event)
    flower.judge(run_dir, status, no_result="the ServerApp wrote no result.json", again=again)


@contextmanager
def here(cwd: Path) -> Iterator[Path]:
    """Have what runs meanwhile run in this process, and keep what it keeps in a directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLD_FLOWER_HOME", str(cwd / "home"))
        patch.setattr("cold_flower.runtime.runner.simulate", simulate)
        yield cwd


def _sent(message: Message) -> Message:
    """Return what arrives where a message was sent to."""
    return message_from_proto(message_to_proto(message))
