"""Send messages and take each reply as it arrives."""

import time
from collections.abc import Iterator, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from strategies.errors import DeadActorError


def exchange(
    grid: Grid,
    messages: Mapping[str, Message],
    *,
    timeout: float | None,
    poll: float = 0.1,
) -> Iterator[tuple[str, Message | None]]:
    """Send one message to each contributor and yield each reply as it arrives.

    Args:
        grid: Flower's.
        messages: by contributor name. Replies are matched by the id of the message
            they answer: errors made by the SuperLink carry no node id.
        timeout: seconds for all; None waits without end.
        poll: seconds between two looks.

    Yields:
        Name and reply; at the deadline, None for each that did not answer.

    Raises:
        DeadActorError: a Ray actor died.
    """
    waiting: dict[str, str] = {}
    for name, message in messages.items():
        ids = [i for i in grid.push_messages([message]) if i]
        if not ids:
            yield name, None
        else:
            waiting[ids[0]] = name
    deadline = None if timeout is None else time.monotonic() + timeout
    while waiting and (deadline is None or time.monotonic() < deadline):
        before = len(waiting)
        for message_id in list(waiting):  # one at a time: never two replies in memory
            for reply in grid.pull_messages([message_id]):
                name = waiting.pop(message_id)
                if reply.has_error() and "ActorDied" in str(reply.error.reason):
                    raise DeadActorError(
                        f"the worker of contributor {name} died (out of memory?): "
                        f"{reason_of(reply)}"
                    )
                yield name, reply
        if waiting and len(waiting) == before:
            time.sleep(poll)
    for name in waiting.values():
        yield name, None


def reason_of(reply: Message) -> str:
    """Return the last line of an error reply's reason, which may be a whole traceback."""
    lines = str(reply.error.reason or f"error code {reply.error.code}").strip().splitlines()
    return lines[-1].strip()[:500] if lines else f"error code {reply.error.code}"
