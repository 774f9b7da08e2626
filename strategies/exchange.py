"""Send messages and take each reply as it arrives."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import httpx
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from strategies.errors import DeadActorError
from strategies.records import text_of

POLL = 0.1  # seconds between two looks for replies
# Of sites each look is a request to the SuperLink, which has theirs to serve.
EACH, MOST = 0.05, 5.0  # seconds for each of them, and for all
_UNREADABLE = 0  # flwr's code for what it does not know
LOST = 3  # and for an answer whose upload did not end, or a question whose time is over


@dataclass(frozen=True)
class Letter:
    """A message that is under way."""

    name: str
    """The contributor's."""
    message: Message
    sent: float
    """When, on the monotonic clock."""
    again: bool = False
    """Whether it was sent before, and the answer was lost."""


class Post:
    """What is under way, one message at most for each contributor.

    Replies are matched by the id of the message they answer: errors made by the SuperLink carry no
    node id.

    An answer that was lost on its way is asked for once more: a SuperNode does not repeat an upload
    that failed, and the same seeds give the same answer.

    Args:
        grid: Flower's.
        simulated: a contributor that died ends the run (`Participants.simulated`).
        wanted: whether a contributor's answer is still of use.
        say: called with a line where an answer was lost.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        simulated: bool = True,
        wanted: Callable[[str], bool] = lambda name: True,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self._grid = grid
        self._simulated = simulated
        self._wanted = wanted
        self._say = say
        self._letters: dict[str, Letter] = {}  # by message id

    def __len__(self) -> int:
        return len(self._letters)

    def __iter__(self) -> Iterator[Letter]:
        return iter(list(self._letters.values()))

    def rest(self, deadline: float = math.inf) -> None:
        """Wait a little where nobody had answered, but not beyond the deadline."""
        pause = POLL if self._simulated else max(POLL, min(EACH * len(self), MOST))
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))

    def send(self, name: str, message: Message, again: bool = False) -> bool:
        """Send a message; return whether the SuperLink took it."""
        ids = [i for i in self._grid.push_messages([message]) if i]
        if ids:
            self._letters[ids[0]] = Letter(name, message, time.monotonic(), again)
        return bool(ids)

    def forget(self, name: str) -> None:
        """Wait no longer for what a contributor would answer."""
        self._letters = {i: one for i, one in self._letters.items() if one.name != name}

    def first(self, deadline: float = math.inf) -> tuple[Letter, Message] | None:
        """Pull one reply, if there is any: never two in memory.

        Args:
            deadline: on the monotonic clock; after it nobody is asked again.

        Flower decodes a site's bytes here, and trusts them: whatever that ends in, short of a
        connection that fails, is an error reply.

        Raises:
            DeadActorError: a Ray actor died.
        """
        for message_id, letter in list(self._letters.items()):
            reply = self._pulled(message_id, letter.message)
            if reply is None:
                if not self._simulated:  # to the end: the next look begins with the others
                    self._letters[message_id] = self._letters.pop(message_id)
                continue
            del self._letters[message_id]
            if self._simulated and reply.has_error() and "ActorDied" in str(reply.error.reason):
                died = f"the worker of contributor {letter.name} died: {reason_of(reply)}"
                raise DeadActorError(died)
            if self._is_lost(letter, reply) and time.monotonic() < deadline:
                sent = letter.message
                # A message's id is that of its content and time: Flower refuses the same one twice.
                copy = Message(sent.content, sent.metadata.dst_node_id, sent.metadata.message_type)
                if self.send(letter.name, copy, again=True):
                    self._say(f"{letter.name}: its answer was lost on its way: asked once more")
                    continue
            return letter, reply
        return None

    def _is_lost(self, letter: Letter, reply: Message) -> bool:
        """Return whether to ask again: an upload did not end, and what it held is wanted."""
        if not reply.has_error() or reply.error.code != LOST or letter.again:
            return False
        about = letter.message.metadata
        silent = time.time() >= about.created_at + about.ttl  # then it was never answered
        return not silent and self._wanted(letter.name)

    def _pulled(self, message_id: str, message: Message) -> Message | None:
        try:
            for reply in self._grid.pull_messages([message_id]):
                if reply.has_error() or isinstance(reply.content, RecordDict):
                    return reply
                raise ValueError(f"it holds {type(reply.content).__name__}")
        except (OSError, httpx.HTTPError):
            raise
        except Exception as error:
            cause = f"the reply cannot be read: {type(error).__name__}: {error}"
            return Message(Error(_UNREADABLE, cause), reply_to=message)
        return None


def exchange(
    grid: Grid,
    messages: Mapping[str, Message],
    *,
    timeout: float | None,
    window: int = 0,
    simulated: bool = True,
    say: Callable[[str], object] = lambda line: None,
) -> Iterator[tuple[str, Message | None]]:
    """Send one message to each contributor and yield each reply as it arrives.

    Args:
        grid: Flower's.
        messages: by contributor name.
        timeout: seconds for all; None waits without end.
        window: how many may be under way at once; 0 is all. Flower keeps replies in
            memory until they are pulled, so in a simulation this bounds it.
        simulated: a contributor that died ends it (`Participants.simulated`).
        say: called with a line where an answer was lost.

    Yields:
        Name and reply; at the deadline those that lie at the SuperLink, and None for each that
        did not answer.

    Raises:
        DeadActorError: a Ray actor died.
    """
    todo, post = deque(messages.items()), Post(grid, simulated=simulated, say=say)
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while todo or post:
        late = time.monotonic() >= deadline  # then what lies there is still taken
        while todo and not late and (not window or len(post) < window):
            name, message = todo.popleft()
            if not post.send(name, message):  # the SuperLink refused it
                yield name, None
        if found := post.first(deadline):
            letter, reply = found
            yield letter.name, reply
        elif late:
            break
        else:
            post.rest(deadline)
    for name in (*(letter.name for letter in post), *(name for name, _ in todo)):
        yield name, None


def reason_of(reply: Message) -> str:
    """Return the last line of an error reply's reason, which may be a whole traceback."""
    lines = str(reply.error.reason or f"error code {reply.error.code}").strip().splitlines()
    return text_of(lines[-1].strip(), 500) if lines else f"error code {reply.error.code}"
