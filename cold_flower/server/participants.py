"""Who takes part in a run, and in which role: the contributors of a suite, in a simulation.

The suite says who there is, and nobody comes or leaves. Sites of their own come and leave:
`cold_flower.server.sites`.
"""

import time
from collections.abc import Callable, Iterable

import torch
from flwr.serverapp import Grid

from cold_flower.config import Config
from cold_flower.data import schedule
from cold_flower.data.plan import Plan, plan
from cold_flower.errors import RunError
from cold_flower.identity import code_sha256
from cold_flower.repository.journal import WAITS
from cold_flower.server.handshake import answer_of, examine, query
from cold_flower.server.reading import say_shares
from strategies.errors import Refused
from strategies.exchange import exchange
from strategies.participants import Member, Participants

SETTLED = 5.0  # seconds without a newcomer, after which fewer nodes than planned must do


def longest_first(members: Iterable[Member]) -> list[Member]:
    """Order members so that workers which share them end at about the same time."""
    return sorted(members, key=lambda member: (-member.tokens, member.name))


class Contributors(Participants):
    """The contributors that are there.

    Args:
        config: the run's.
        plan: the role of each.
        members: who is there; fewer than planned, where the federation has fewer nodes.
    """

    def __init__(self, config: Config, plan: Plan, members: Iterable[Member]) -> None:
        super().__init__(members)
        self._config = config
        self.plan = plan

    @property
    def training(self) -> dict[str, Member]:
        """Return who contributes, of those who are there."""
        return {name: m for name, m in self.members.items() if name in self.plan.seen}

    def refresh(self) -> None:
        """Look again who is there: in a simulation nobody comes or leaves."""

    def allowed(self, name: str) -> bool:
        """Return whether the plan has it contribute."""
        return name in self.plan.seen

    def cohort(self, iteration: int) -> list[str]:
        """Draw whom an iteration asks; it depends on the seed and the iteration alone.

        Raises:
            ConfigError: more asked than planned.
        """
        size = self._config.contributors_per_iteration
        if len(self.members) < len(self.plan.names):  # `gather` has said so
            size = min(size, len(self.training))
        return self._draw(iteration, size)

    def _draw(self, iteration: int, size: int) -> list[str]:
        config, training = self._config, self.training
        drawn = schedule.cohort(
            [*training], iteration, size=size, schedule=config.schedule, seed=config.seed
        )
        return [member.name for member in longest_first(training[name] for name in drawn)]


def gather(grid: Grid, config: Config, model: str, say: Callable[..., object]) -> Contributors:
    """Wait for the nodes of a simulation, and ask each who it is.

    Args:
        grid: Flower's.
        config: the run's; ``wait.nodes`` is for coming online, ``wait.replies`` for the answers,
            which may have to tokenise a large dataset first.
        model: sha256 of the base model's shape and tokenizer.
        say: called with each line of progress.

    Raises:
        RunError: nobody came, two have one name, or one runs something else.
    """
    whole, code = plan(config), code_sha256()
    planned = len(whole.names)
    nodes = _wait(grid, planned, config.wait.nodes)
    if len(nodes) < planned:
        say(
            f"{len(nodes)} of {planned} contributors are online: only these take part. In a "
            f"simulation: --federation-config 'num-supernodes={planned}'"
        )
    timeout = config.wait.replies
    members: dict[str, Member] = {}
    say(
        f"asking {len(nodes)} contributors who they are; for this Ray starts its workers",
        **{WAITS: "Ray to start its workers"},
    )
    started = False
    for node, reply in exchange(
        grid, {str(n): query(n, config.explicit) for n in nodes}, timeout=timeout
    ):
        if reply is None:
            raise RunError(
                f"node {node} did not answer the query within {timeout:g} s (wait.replies)"
            )
        if not started:
            say("Ray has started", **{WAITS: "the contributors to read their data"})
            started = True
        try:
            answer = answer_of(reply)
        except Refused as reason:
            raise RunError(f"a contributor cannot start: {reason}") from reason
        if not answer.get("name"):
            say(f"node {node} has no task in this run and is left out")
            continue
        try:
            member = examine(answer, int(node), model=model, code=code)
        except Refused as reason:
            raise RunError(f"node {node}: {reason}") from reason
        if member.name in members:
            raise RunError(f"two nodes call themselves {member.name}: each contributor is one node")
        members[member.name] = member
    say_shares(members.values(), config.finetune.max_length, say)
    _warn_of_idle_gpus(members.values(), say)
    return Contributors(config, whole, (member for _, member in sorted(members.items())))


def _wait(grid: Grid, planned: int, wait: float) -> list[int]:
    """Wait for ``planned`` nodes, or for those that came once no more follow."""
    started = changed = time.monotonic()
    nodes: list[int] = []
    while len(nodes) < planned:
        now = time.monotonic()
        online = list(grid.get_node_ids())
        if len(online) != len(nodes):
            nodes, changed = online, now
        elif nodes and now - changed > SETTLED:
            break
        elif now - started > wait:
            raise RunError(f"no contributor came online within {wait:g} s (wait.nodes)")
        time.sleep(0.1)
    return nodes


def _warn_of_idle_gpus(members: Iterable[Member], say: Callable[[str], object]) -> None:
    gpus = torch.cuda.device_count()
    if gpus and not any(member.device == "cuda" for member in members):
        say(
            f"WARNING: this machine has {gpus} GPU(s), but the contributors compute on "
            "cores. In a simulation: --gpus-per-contributor 1, or with flwr run "
            "client-resources-num-gpus=1.0 in --federation-config"
        )
