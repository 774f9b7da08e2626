"""Who is there: wait for the nodes, ask each who it is, refuse what does not fit."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from cold_flower.config import Wait
from cold_flower.data.task import METRIC_OF
from cold_flower.errors import RunError
from strategies import records
from strategies.errors import Refused
from strategies.exchange import exchange, reason_of
from strategies.names import NAME, unknown

SETTLED = 5.0  # seconds without a newcomer, after which fewer nodes than planned must do


@dataclass(frozen=True)
class Member:
    """A contributor that answered the query."""

    name: str
    node: int
    examples: int
    tokens: int
    """Of its training examples: how long its work takes, relative to the others'."""
    device: str = "cpu"
    """What it computes on, as it says."""
    metric: str = "accuracy"
    """Of its task, as it says."""


def longest_first(members: Iterable[Member]) -> list[Member]:
    """Order members so that workers which share them end at about the same time."""
    return sorted(members, key=lambda member: (-member.tokens, member.name))


def gather(
    grid: Grid,
    planned: int,
    *,
    wait: Wait,
    code: str,
    model: str,
    say: Callable[[str], object],
) -> dict[str, Member]:
    """Return the contributors by name.

    Args:
        grid: Flower's.
        planned: how many there should be.
        wait: ``nodes`` for coming online; ``replies`` for the answers, which may have to
            tokenise a large dataset first.
        code: this code's sha256; in a simulation all must run the same.
        model: sha256 of the base model's shape and tokenizer.
        say: called with each line of progress.

    Raises:
        RunError: nobody came, two have one name, or one runs something else.
    """
    nodes = _wait(grid, planned, wait.nodes)
    if len(nodes) < planned:
        say(
            f"{len(nodes)} of {planned} contributors are online: only these take part. In a "
            f"simulation: --federation-config 'num-supernodes={planned}'"
        )
    asked = {str(node): Message(RecordDict(), node, MessageType.QUERY) for node in nodes}
    found: dict[str, Member] = {}
    for node, reply in exchange(grid, asked, timeout=wait.replies):
        if reply is None:
            raise RunError(
                f"node {node} did not answer the query within {wait.replies:g} s (wait.replies)"
            )
        try:
            about = ask(reply)
        except Refused as reason:
            raise RunError(f"a contributor cannot start: {reason}") from reason
        if not about.get("name"):
            say(f"node {node} has no task in this run and is left out")
            continue
        try:
            member = examine(about, int(node), model=model, code=code)
        except Refused as reason:
            raise RunError(f"node {node}: {reason}") from reason
        if member.name in found:
            raise RunError(f"two nodes call themselves {member.name}: each contributor is one node")
        found[member.name] = member
    return dict(sorted(found.items()))


def ask(reply: Message) -> dict[str, Any]:
    """Return what an answer to a query says.

    Raises:
        Refused: it is an error.
    """
    if reply.has_error():
        raise Refused(reason_of(reply))
    records.check_size(reply.content)
    return records.config_of(reply.content, records.CONTRIBUTOR)


def examine(about: Mapping[str, Any], node: int, *, model: str, code: str = "") -> Member:
    """Check what a node says of itself.

    Args:
        about: its answer.
        node: its id.
        model: sha256 of the base model's shape and tokenizer.
        code: this code's sha256 where all must run the same; empty lets it differ.

    Raises:
        Refused: naming what does not fit.
    """
    name = str(about.get("name"))
    if not NAME.fullmatch(name):
        raise Refused(f"it calls itself {name[:80]!r}; a name is {NAME.pattern}")
    for key, mine in (("protocol", records.PROTOCOL), ("model", model), ("code", code)):
        if mine and about.get(key) != mine:
            raise Refused(
                f"contributor {name} has another {key}: {str(about.get(key))[:80]!r}, the "
                f"server has {mine!r}"
            )
    examples, tokens = (about.get(key, 0) for key in ("examples", "tokens"))
    if type(examples) is not int or not 1 <= examples <= records.MOST_EXAMPLES:
        raise Refused(f"it has {str(examples)[:80]!r} examples, expected a number from 1")
    tokens = tokens if type(tokens) is int and tokens >= 0 else 0
    device, metric = str(about.get("device", "cpu"))[:80], str(about.get("metric", "accuracy"))
    if metric not in METRIC_OF.values():
        raise Refused(unknown("metric", metric[:80], list(METRIC_OF.values())))
    return Member(name, node, examples, tokens, device, metric)


def _wait(grid: Grid, planned: int, wait: float) -> list[int]:
    """Wait for ``planned`` nodes, or for those that came once no more follow."""
    started = changed = time.monotonic()
    nodes: list[int] = []
    while len(nodes) < planned:
        now = time.monotonic()
        there = list(grid.get_node_ids())
        if len(there) != len(nodes):
            nodes, changed = there, now
        elif nodes and now - changed > SETTLED:
            break
        elif now - started > wait:
            raise RunError(f"no contributor came online within {wait:g} s (wait.nodes)")
        time.sleep(0.1)
    return nodes
