"""The contributors of a simulation: found among Flower's nodes, and asked who they are.

Asked is who has something to do now, so that what a run costs does not grow with how many never
take part.
"""

import time
from collections.abc import Callable, Collection, Iterable

import torch
from flwr.serverapp import Grid

from cold_flower.config import Config
from cold_flower.data.plan import plan
from cold_flower.errors import RunError
from cold_flower.identity import code_sha256
from cold_flower.repository.journal import WAITS
from cold_flower.server.handshake import answer_of, examine, query
from cold_flower.server.participants import Contributors
from cold_flower.server.reading import say_shares
from strategies.errors import Refused
from strategies.exchange import exchange
from strategies.participants import Member

WINDOW = 64  # asked at once, where the number of workers is not known
SETTLED = 5.0  # seconds without a newcomer, after which fewer nodes than planned must do


class Simulation(Contributors):
    """The contributors of a simulation, each asked who it is before its first work.

    Args:
        grid: Flower's.
        config: the run's; ``wait.nodes`` is for coming online, ``wait.replies`` for the answers,
            which may have to tokenise a large dataset first.
        model: sha256 of the base model's shape and tokenizer.
        say: called with each line of progress.
        first: the first iteration to make.
        checked: everybody's data have been checked (`cold_flower.runtime.experiments.check`), so
            at the start only those are asked that have something to do then. Otherwise all are,
            so that what is wrong is said before hours are spent.
        window: how many are asked at once (see `strategies.exchange.exchange`).
        left: who left the run for good; they have nodes, but are asked nothing.

    Raises:
        RunError: nobody came, two have one name, or one runs something else.
    """

    def __init__(
        self,
        grid: Grid,
        config: Config,
        model: str,
        say: Callable[..., object],
        *,
        first: int = 1,
        checked: bool = False,
        window: int = WINDOW,
        left: Collection[str] = (),
    ) -> None:
        whole = plan(config)
        super().__init__(config, whole.without(left), (), left)
        self._grid, self._say, self._window = grid, say, window
        self._model, self._code = model, code_sha256()
        planned = whole.names
        if left:
            say(f"{', '.join(left)} left this run: neither its contribution nor a score is asked")
        nodes = _wait(grid, len(planned), config.wait.nodes)
        if len(nodes) < len(planned):
            say(
                f"{len(nodes)} of {len(planned)} contributors are online: only these take part. "
                f"In a simulation: --federation-config 'num-supernodes={len(planned)}'"
            )
        self._unasked = set(nodes)
        self._nodes: dict[str, int] = {}
        made = sorted(grid.get_nodes(), key=lambda node: str(node.registered_at)) if checked else []
        if made and len(nodes) == len(made) == len(planned):
            # Flower numbers a simulation's nodes as it makes them, so this is who each should be.
            of_name = zip(planned, (node.node_id for node in made), strict=True)
            self._nodes = {name: node for name, node in of_name if name not in left}
            cohort = self._drawn(first) if first <= config.iterations else []
            scoring = self.plan.evaluated if config.protocols() else ()
            self.asked(sorted({*scoring, *cohort}))
        else:
            self._ask(nodes)
        self._warn_of_idle_gpus()

    @property
    def there(self) -> Collection[str]:
        """Return the names of those who are there, also where they have not been asked."""
        return self._nodes or self.members

    def asked(self, names: Iterable[str]) -> list[Member]:
        """Return those of these names who are there; who was not asked yet, is asked now."""
        names = list(names)
        wanted = [name for name in names if name in self._nodes and name not in self.members]
        if wanted:
            self._ask(self._nodes[name] for name in wanted)
            if self._unasked and not self.members.keys() >= {*wanted}:
                self._ask(self._unasked)  # Flower numbers its nodes otherwise
            if lost := [name for name in wanted if name not in self.members]:
                raise RunError(f"no node says that it is contributor {lost[0]}, which is planned")
        return super().asked(names)

    def _ask(self, nodes: Iterable[int]) -> None:
        """Ask nodes who they are, and take them in."""
        asked = {str(node): query(node, self._config.explicit) for node in nodes}
        timeout, members = self._config.wait.replies, dict(self.members)
        started = bool(members)
        self._say_that_they_are_asked(len(asked))
        for node, reply in exchange(self._grid, asked, timeout=timeout, window=self._window):
            if reply is None:
                raise RunError(
                    f"node {node} did not answer the query within {timeout:g} s (wait.replies)"
                )
            if not started:
                self._say("Ray has started", **{WAITS: "the contributors to read their data"})
                started = True
            self._unasked.discard(int(node))
            try:
                answer = answer_of(reply)
            except Refused as reason:
                raise RunError(f"a contributor cannot start: {reason}") from reason
            if not answer.get("name"):
                self._say(f"node {node} has no task in this run and is left out")
                continue
            try:
                member = examine(answer, int(node), model=self._model, code=self._code)
            except Refused as reason:
                raise RunError(f"node {node}: {reason}") from reason
            if member.name in self._left:
                continue
            if member.name in members:
                raise RunError(
                    f"two nodes call themselves {member.name}: each contributor is one node"
                )
            members[member.name] = member
        new = sorted(members.keys() - self.members.keys())
        self.members = dict(sorted(members.items()))
        say_shares((members[name] for name in new), self._config.finetune.max_length, self._say)

    def _say_that_they_are_asked(self, number: int) -> None:
        if self.members:
            self._say(
                f"asking {number} more contributors who they are",
                **{WAITS: "the contributors to read their data"},
            )
        else:
            self._say(
                f"asking {number} contributors who they are; for this Ray starts its workers",
                **{WAITS: "Ray to start its workers"},
            )

    def _warn_of_idle_gpus(self) -> None:
        gpus = torch.cuda.device_count()
        if (
            gpus
            and self.members
            and not any(member.device == "cuda" for member in self.members.values())
        ):
            self._say(
                f"WARNING: this machine has {gpus} GPU(s), but the contributors compute on "
                "cores. In a simulation: --gpus-per-contributor 1, or with flwr run "
                "client-resources-num-gpus=1.0 in --federation-config"
            )


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
