"""Ask a node who it is, and check what it says of itself."""

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from cold_flower.data.task import METRIC_OF
from strategies import records
from strategies.errors import Refused
from strategies.exchange import reason_of
from strategies.names import NAME, unknown
from strategies.participants import Member


def query(node: int, explicit: str = "") -> Message:
    """Return the question; ``explicit`` is the run's key."""
    content = RecordDict()
    if explicit:
        content[records.CONFIG] = ConfigRecord({records.EXPLICIT: explicit})
    return Message(content, node, MessageType.QUERY)


def answer_of(reply: Message) -> dict[str, Any]:
    """Return what the answer says.

    Raises:
        Refused: it is an error.
    """
    if reply.has_error():
        raise Refused(reason_of(reply))
    records.check_size(reply.content)
    return records.config_of(reply.content, records.CONTRIBUTOR)


def examine(answer: Mapping[str, Any], node: int, *, model: str, code: str = "") -> Member:
    """Return the member that a node says it is.

    Args:
        answer: the node's.
        node: its id.
        model: sha256 of the base model's shape and tokenizer.
        code: this code's sha256 where all must run the same; empty lets it differ.

    Raises:
        Refused: naming what does not fit.
    """
    name = str(answer.get("name"))
    if not NAME.fullmatch(name):
        raise Refused(f"it calls itself {name[:80]!r}; a name is {NAME.pattern}")
    for key, mine in (("protocol", records.PROTOCOL), ("model", model), ("code", code)):
        if mine and answer.get(key) != mine:
            raise Refused(
                f"contributor {name} has another {key}: {str(answer.get(key))[:80]!r}, the "
                f"server has {mine!r}"
            )
    examples, tokens = (answer.get(key, 0) for key in ("examples", "tokens"))
    if type(examples) is not int or not 1 <= examples <= records.MOST_EXAMPLES:
        raise Refused(f"it has {str(examples)[:80]!r} examples, expected a number from 1")
    tokens = tokens if type(tokens) is int and tokens >= 0 else 0
    device, metric = str(answer.get("device", "cpu"))[:80], str(answer.get("metric", "accuracy"))
    if metric not in METRIC_OF.values():
        raise Refused(unknown("metric", metric[:80], list(METRIC_OF.values())))
    shares = [_share(answer.get(key, 0.0)) for key in ("unknown", "cut")]
    return Member(name, node, examples, tokens, device, metric, *shares)


def _share(value: Any) -> float:
    """Return a share as it was said; 0 where it is none: it informs, nothing rests on it."""
    return value if type(value) is float and 0 <= value <= 1 else 0.0
