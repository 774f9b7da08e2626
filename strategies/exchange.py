"""Send messages and take each reply as it arrives."""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping

import httpx
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from strategies.errors import DeadActorError
from strategies.records import text_of

POLL = 0.1  # seconds between two looks for replies
_UNREADABLE = 0  # flwr's code for what it does not know


def exchange(
    grid: Grid,
    messages: Mapping[str, Message],
    *,
    timeout: float | None,
    window: int = 0,
    simulated: bool = True,
) -> Iterator[tuple[str, Message | None]]:
    """Send one message to each contributor and yield each reply as it arrives.

    Args:
        grid: Flower's.
        messages: by contributor name. Replies are matched by the id of the message
            they answer: errors made by the SuperLink carry no node id.
        timeout: seconds for all; None waits without end.
        window: how many may be under way at once; 0 is all. Flower keeps replies in
            memory until they are pulled, so in a simulation this bounds it.
        simulated: a contributor that died ends it (`Participants.simulated`).

    Yields:
        Name and reply; at the deadline those that lie at the SuperLink, and None for each that
        did not answer.

    Raises:
        DeadActorError: a Ray actor died.
    """
    todo = deque(messages.items())
    waiting: dict[str, str] = {}  # name by message id
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while todo or waiting:
        late = time.monotonic() >= deadline  # then what lies there is still taken
        while todo and not late and (not window or len(waiting) < window):
            name, message = todo.popleft()
            ids = [i for i in grid.push_messages([message]) if i]
            if ids:
                waiting[ids[0]] = name
            else:  # the SuperLink refused it
                yield name, None
        asked, reply = _first_reply(grid, {i: messages[name] for i, name in waiting.items()})
        if reply is None:
            if late:
                break
            time.sleep(POLL)
            continue
        name = waiting.pop(asked)
        if simulated and reply.has_error() and "ActorDied" in str(reply.error.reason):
            raise DeadActorError(f"the worker of contributor {name} died: {reason_of(reply)}")
        yield name, reply
    for name in (*waiting.values(), *(name for name, _ in todo)):
        yield name, None


def _first_reply(grid: Grid, waiting: Mapping[str, Message]) -> tuple[str, Message | None]:
    """Pull one reply, if there is any: never two in memory; return which message it answers.

    Flower decodes a site's bytes here, and trusts them: whatever that ends in, short of a
    connection that fails, is an error reply.
    """
    for message_id, message in waiting.items():
        try:
            for reply in grid.pull_messages([message_id]):
                if reply.has_error() or isinstance(reply.content, RecordDict):
                    return message_id, reply
                raise ValueError(f"it holds {type(reply.content).__name__}")
        except (OSError, httpx.HTTPError):
            raise
        except Exception as error:
            cause = f"the reply cannot be read: {type(error).__name__}: {error}"
            return message_id, Message(Error(_UNREADABLE, cause), reply_to=message)
    return "", None


def reason_of(reply: Message) -> str:
    """Return the last line of an error reply's reason, which may be a whole traceback."""
    lines = str(reply.error.reason or f"error code {reply.error.code}").strip().splitlines()
    return text_of(lines[-1].strip(), 500) if lines else f"error code {reply.error.code}"
