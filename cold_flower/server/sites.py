"""Contributors at sites of their own: who may take part, who is there, who came and left.

A site is known by the name under which its key was registered at the SuperLink; what it says
of itself is compared with that. Sites are looked up before each iteration and evaluation, and
only newcomers are asked who they are. One that does not fit is left out, with the reason, and
asked again when its SuperNode has reconnected.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from cold_flower.config import Config, split
from cold_flower.data.plan import Plan
from cold_flower.data.schedule import cohort
from cold_flower.data.task import Task
from cold_flower.errors import ConfigError, RunError
from cold_flower.server.roster import Member, ask, examine
from strategies.errors import Refused
from strategies.exchange import exchange
from strategies.names import NAME

POLL = 3.0  # seconds between two looks for sites that are waited for


class Sites:
    """The sites of one run.

    Args:
        grid: Flower's.
        config: the run's.
        model: sha256 of the base model's shape and tokenizer; a site's must be the same.
        say: called with each line of progress.
        record: called with a row for each site that came, left, or was refused.
    """

    def __init__(
        self,
        grid: Grid,
        config: Config,
        model: str,
        say: Callable[[str], object],
        record: Callable[[dict[str, Any]], object] = lambda row: None,
    ) -> None:
        check(config)
        self._grid = grid
        self._config = config
        self._model = model
        self._say = say
        self._record = record
        self._allow = split(config.sites.allow)
        self._unseen = split(config.unseen)
        self._stamps: dict[int, str] = {}  # of nodes that were asked: when they connected
        self._cohort: tuple[int, list[str]] = (0, [])
        self.members: dict[str, Member] = {}
        self.roster: dict[str, int] = {}
        self._wait()

    @property
    def plan(self) -> Plan:
        """Return the role of each site that is there."""
        names = tuple(self.members)
        seen = tuple(name for name in names if name not in self._unseen)
        unseen = tuple(name for name in names if name in self._unseen)
        tasks = {name: _task_of(member) for name, member in self.members.items()}
        return Plan(tasks, seen, unseen, names)

    def refresh(self) -> None:
        """Let newcomers in, and those go that are no longer online."""
        nodes = {node.node_id: node for node in self._grid.get_nodes()}
        stamps = {i: str(node.last_activated_at) for i, node in nodes.items()}
        for name, member in list(self.members.items()):
            if self._stamps[member.node] != stamps.get(member.node):
                here = member.node in nodes
                self._leave(name, "reconnected" if here else "is no longer online")
        self._stamps = {i: s for i, s in self._stamps.items() if stamps.get(i) == s}
        taken = set(self.members)
        asked: dict[str, int] = {}
        for node in sorted(stamps.keys() - self._stamps.keys()):
            self._stamps[node] = stamps[node]
            name = str(nodes[node].name)
            if cause := self._unfit(name, {*taken, *asked}):
                self._refuse(name or f"node {node}", cause)
            else:
                asked[name] = node
        self._ask(asked)

    def allowed(self, name: str) -> bool:
        """Return whether sites.allow has it."""
        return self._allow == ["*"] or name in self._allow

    def cohort(self, iteration: int) -> list[str]:
        """Draw an iteration's cohort of the sites that are there when it begins."""
        if self._cohort[0] != iteration:
            self._wait()
            seen, config = self.plan.seen, self._config
            size = config.contributors_per_iteration
            size = 0 if size >= len(seen) else size
            drawn = cohort(seen, iteration, size=size, schedule=config.schedule, seed=config.seed)
            self._cohort = (iteration, drawn)
        return self._cohort[1]

    def _wait(self) -> None:
        """Wait until enough sites are ready."""
        needed = max(self._config.sites.minimum, self._config.quorum)
        wait, started, said = self._config.wait.nodes, time.monotonic(), False
        while True:
            self.refresh()
            ready = self.plan.seen
            if len(ready) >= needed:
                return
            if time.monotonic() - started > wait:
                raise RunError(
                    f"{len(ready)} of {needed} sites were ready within {wait:g} s (wait.nodes; "
                    f"ready: {', '.join(ready) or 'none'}; needed: sites.minimum and quorum). "
                    "Why a site was left out stands in sites.jsonl"
                )
            if not said:
                self._say(f"{len(ready)} of {needed} sites are ready, waiting for more")
                said = True
            time.sleep(min(POLL, wait))

    def _unfit(self, name: str, there: Iterable[str]) -> str:
        """Say why a node may not even be asked; empty where it may."""
        if not name:
            return "has no registered name: flwr supernode register KEY.pub --name NAME"
        if not NAME.fullmatch(name):
            return f"a registered name is {NAME.pattern}"
        if not self.allowed(name):
            return "is not in sites.allow"
        return f"another node is registered as {name}" if name in there else ""

    def _ask(self, asked: dict[str, int]) -> None:
        """Ask newcomers who they are; in the time that sites are waited for."""
        messages = {n: Message(RecordDict(), i, MessageType.QUERY) for n, i in asked.items()}
        for name, reply in exchange(
            self._grid, messages, timeout=self._config.wait.nodes, actors=False
        ):
            try:
                if reply is None:
                    del self._stamps[asked[name]]  # it may only be slow: asked again
                    raise Refused(f"no answer within {self._config.wait.nodes:g} s (wait.nodes)")
                about = ask(reply)
                member = examine(about, asked[name], model=self._model)
                if member.name != name:
                    raise Refused(f"it calls itself {member.name!r}: name in its site.toml")
            except Refused as reason:
                self._refuse(name, str(reason))
            else:
                self.members[name], self.roster[name] = member, asked[name]
                self.members = dict(sorted(self.members.items()))
                self._say(f"site {name} takes part: {member.examples} training examples")
                told = {key: str(about.get(key, ""))[:200] for key in ("versions", "code")}
                self._note(name, "joined", examples=member.examples, **told)

    def _leave(self, name: str, cause: str) -> None:
        del self.members[name], self.roster[name]
        self._say(f"site {name} {cause}")
        self._note(name, "left", reason=cause)

    def _refuse(self, name: str, cause: str) -> None:
        self._say(f"site {name[:80]} is left out: {cause}")
        self._note(name[:80], "refused", reason=cause)

    def _note(self, name: str, event: str, **about: Any) -> None:
        self._record({"time": round(time.time(), 3), "site": name, "event": event, **about})


def _task_of(member: Member) -> Task:
    """Return what the server knows of a site's task; scores are under the site's name."""
    return Task(member.name, "at the site", source="site", text=(), label="", metric=member.metric)


def check(config: Config) -> None:
    """Check the keys of a run with sites, before it starts.

    Raises:
        ConfigError: a key about suites, or a name that no site can have.
    """
    alone = Config()
    for key in ("tasks", "pool", "folds", "fold", "baseline", "partition"):
        if getattr(config, key) != getattr(alone, key):
            raise ConfigError(
                f"{key} is about the tasks of a suite, but sites.allow is set: sites bring "
                f"tasks of their own; leave {key} alone"
            )
    if config.evaluate.tasks:
        raise ConfigError("evaluate.tasks is about a suite, but sites.allow is set")
    allow = split(config.sites.allow)
    for name in [*allow, *split(config.unseen)]:
        if name != "*" and not NAME.fullmatch(name):
            raise ConfigError(f"sites.allow: {name!r} is no site's name (expected {NAME.pattern})")
    if "*" in allow and len(allow) > 1:
        raise ConfigError(f"sites.allow is * or names, got {config.sites.allow!r}")
    named = len([name for name in allow if name not in split(config.unseen)])
    needed = max(config.sites.minimum, config.quorum)
    if allow != ["*"] and needed > named:
        raise ConfigError(
            f"sites.minimum and quorum ask for {needed} sites, but sites.allow names {named} that "
            "may contribute"
        )
