"""Contributors at sites of their own: who may take part, who is there, who came and left.

A site is known by the name under which its key was registered at the SuperLink; what it says
of itself is compared with that. Sites are looked up before each iteration and evaluation, and
only newcomers are asked who they are. One that does not fit is left out, with the reason, and
asked again when its SuperNode has reconnected. One that does not answer is waited for once.
"""

import time
from collections.abc import Mapping
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from cold_flower.config import Config, split
from cold_flower.data.plan import Plan
from cold_flower.data.task import Task
from cold_flower.errors import ConfigError, RunError
from cold_flower.repository.journal import SITES, Journal
from cold_flower.server.handshake import answer_of, examine, query
from cold_flower.server.participants import Contributors, names_of
from cold_flower.server.reading import say_shares
from strategies import exchange
from strategies.errors import Refused
from strategies.names import NAME
from strategies.participants import Member

POLL = 3.0  # seconds between two looks for sites that are waited for


class Sites(Contributors):
    """The sites of one run.

    Args:
        grid: Flower's.
        config: the run's.
        model: sha256 of the base model's shape and tokenizer; a site's must be the same.
        journal: where it stands who came, left, or was refused.
    """

    simulated = False

    def __init__(self, grid: Grid, config: Config, model: str, journal: Journal) -> None:
        check(config)
        super().__init__(config, Plan({}, (), (), ()), (), journal.left())
        self._grid = grid
        self._model = model
        self._journal = journal
        self._asked: dict[int, str] = {}  # nodes that were asked, and when they connected
        self._questions: dict[str, int] = {}  # the nodes whose answer is to come, by site
        self._post = exchange.Post(grid, simulated=False, say=journal.say)
        self._doubles: set[tuple[int, int]] = set()  # nodes under one name that were told of
        self._asking: tuple[int, list[str]] = (0, [])  # an iteration, and its cohort
        self._wait()

    def allowed(self, name: str) -> bool:
        """Return whether sites.allow has it, and it did not leave."""
        allow = split(self._config.sites.allow)
        return name not in self._left and (allow == ["*"] or name in allow)

    @property
    def known(self) -> set[str]:
        """Return who may take part, or has: its name is its own also while it is away."""
        return {*self.members, *names_of(self._config, self._journal)}

    def cohort(self, iteration: int) -> list[str]:
        """Draw an iteration's cohort of the sites that are there when it begins."""
        if self._asking[0] != iteration:
            self._wait()
            self._asking = (iteration, self._in_order(self._drawn(iteration)))
        return self._asking[1]

    def expected(self, iteration: int) -> list[str]:
        """Return whom an iteration asks, or would ask if it began now: nobody is waited for."""
        return self._asking[1] if self._asking[0] == iteration else super().expected(iteration)

    def refresh(self) -> None:
        """Let newcomers in, and those go that are no longer online."""
        nodes = {node.node_id: node for node in self._grid.get_nodes()}
        connected = {i: str(node.last_activated_at) for i, node in nodes.items()}
        staying = dict(self.members)
        for name, member in self.members.items():
            if self._asked[member.node] != connected.get(member.node):
                del staying[name]
                cause = "reconnected" if member.node in nodes else "is no longer online"
                self._journal.say(f"site {name} {cause}")
                self._record(name, "left", reason=cause)
        self._asked = {i: at for i, at in self._asked.items() if connected.get(i) == at}
        for name in [name for name, node in self._questions.items() if node not in self._asked]:
            self._post.forget(name)
            del self._questions[name]
        there = {name: member.node for name, member in staying.items()} | self._questions
        newcomers: dict[str, int] = {}
        for node in sorted(connected.keys() - self._asked.keys()):
            name = str(nodes[node].name)
            if first := {**there, **newcomers}.get(name):
                self._tell_of_double(name, first, node)  # it is asked once the first one is gone
                continue
            self._asked[node] = connected[node]
            if cause := self._unfit(name):
                self._refuse(name or f"node {node}", cause)
            else:
                newcomers[name] = node
        self.members = dict(sorted({**staying, **self._ask(newcomers)}.items()))
        self.plan = self._roles()

    def _drawn(self, iteration: int) -> list[str]:
        if self.replayed:
            return super()._drawn(iteration)
        size = min(self._config.contributors_per_iteration, len(self.training))
        return self._draw(iteration, size)

    def _roles(self) -> Plan:
        """Return the role of each site that is there."""
        unseen = split(self._config.unseen)
        tasks = {name: _task_of(member) for name, member in self.members.items()}
        return Plan(
            tasks,
            seen=tuple(name for name in tasks if name not in unseen),
            unseen=tuple(name for name in tasks if name in unseen),
            evaluated=tuple(tasks),
        )

    def _wait(self) -> None:
        """Wait until enough sites are ready."""
        needed = max(self._config.sites.minimum, self._config.quorum, self._config.buffer)
        wait, started, told = self._config.wait.nodes, time.monotonic(), False
        while True:
            self.refresh()
            ready = self.training
            if len(ready) >= needed:
                return
            if time.monotonic() - started > wait:
                raise RunError(
                    f"{len(ready)} of {needed} sites were ready within {wait:g} s (wait.nodes; "
                    f"ready: {', '.join(ready) or 'none'}; needed: sites.minimum, quorum, buffer). "
                    "Why a site was left out stands in sites.jsonl; one that is still at work for "
                    "a run that was stopped answers when it is done: with --resume sites.minimum, "
                    "quorum and wait.nodes may be others"
                )
            if not told:
                self._journal.say(f"{len(ready)} of {needed} sites are ready, waiting for more")
                told = True
            time.sleep(min(POLL, wait))

    def _unfit(self, name: str) -> str:
        """Say why a node may not even be asked; empty where it may."""
        if not name:
            return "has no registered name: flwr supernode register KEY.pub --name NAME"
        if not NAME.fullmatch(name):
            return f"a registered name is {NAME.pattern}"
        if name in self._left:
            return "left this run (left.jsonl)"
        return "" if self.allowed(name) else "is not in sites.allow"

    def _tell_of_double(self, name: str, first: int, node: int) -> None:
        """Say it once where two nodes are registered under one name: one of them is wrong."""
        if (first, node) not in self._doubles:
            self._doubles.add((first, node))
            cause = f"it is registered as {name}, too, as node {first} is, which is asked"
            self._refuse(f"node {node}", f"{cause}: flwr supernode unregister takes one out")

    def _ask(self, newcomers: Mapping[str, int]) -> dict[str, Member]:
        """Ask newcomers who they are, and wait for their answers, but no longer than for sites.

        An answer that is late (the data of a site may be tokenised first) is taken whenever this
        is called again, and nobody waits for it.
        """
        joined: dict[str, Member] = {}
        for name, node in newcomers.items():
            if self._post.send(name, query(node)):
                self._questions[name] = node
            else:
                del self._asked[node]
                self._refuse(name, "the SuperLink did not take the question: it is asked again")
        deadline = time.monotonic() + self._config.wait.nodes
        while self._post:
            if found := self._post.first():
                letter, reply = found
                member = self._welcome(letter.name, self._questions.pop(letter.name), reply)
                joined |= {letter.name: member} if member else {}
            elif not newcomers.keys() & self._questions or time.monotonic() > deadline:
                break
            else:
                self._post.rest(deadline)
        for name in newcomers.keys() & self._questions:
            wait = f"no answer within {self._config.wait.nodes:g} s (wait.nodes)"
            self._refuse(name, f"{wait}; it takes part once it answers, nobody waits for it again")
        say_shares(joined.values(), self._config.finetune.max_length, self._journal.say)
        return joined

    def _welcome(self, name: str, node: int, reply: Message) -> Member | None:
        """Return who a site is by its answer; None, said and recorded, where it does not fit."""
        try:
            answer = answer_of(reply)
            member = examine(answer, node, model=self._model)
            if member.name != name:
                raise Refused(f"it calls itself {member.name!r}: name in its site.toml")
        except Refused as reason:
            self._refuse(name, str(reason))
            if reply.has_error() and reply.error.code == exchange.LOST:
                del self._asked[node]  # it may never have heard of it: asked again
            return None
        self._journal.say(f"site {name} takes part: {member.examples} training examples")
        runs = {key: str(answer.get(key, ""))[:200] for key in ("versions", "code")}
        self._record(name, "joined", examples=member.examples, **runs)
        return member

    def _refuse(self, name: str, cause: str) -> None:
        self._journal.say(f"site {name[:80]} is left out: {cause}")
        self._record(name[:80], "refused", reason=cause)

    def _record(self, name: str, event: str, **details: Any) -> None:
        row = {"time": round(time.time(), 3), "site": name, "event": event, **details}
        self._journal.append(SITES, [row])


def _task_of(member: Member) -> Task:
    """Return what the server knows of a site's task; scores are under the site's name."""
    return Task(member.name, "at the site", source="site", text=(), label="", metric=member.metric)


def check(config: Config) -> None:
    """Check the keys of a run with sites, before it starts.

    Raises:
        ConfigError: a key about suites, or a name that no site can have.
    """
    default = Config()
    for key in ("tasks", "pool", "folds", "fold", "baseline", "partition"):
        if getattr(config, key) != getattr(default, key):
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
