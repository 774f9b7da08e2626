"""ColD Fusion as a Flower strategy.

Don-Yehiya et al., ColD Fusion: Collaborative Descent for Distributed Multitask
Finetuning, arXiv 2212.01378, section 3: every iteration the contributors take the base,
each finetunes it fully on its own dataset, and a fusion rule makes the next base of what
returns. Flower's own loop (`Strategy.start`) runs it.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from strategies import records
from strategies.fusion import Rule, Weights
from strategies.gate import Gate
from strategies.inbox import Inbox
from strategies.waiting import told


class ColDFusion(Strategy):
    """Send the base to the cohort and fuse what comes back with any fusion rule.

    The arrays of a base are emptied once the next one is made, the initial ones too, unless
    somebody is still at work.

    Args:
        fuse: a rule from `strategies.fusion.load`.
        inbox: collects the contributions; pass the same one to `start` as the grid.
        draws: returns an iteration's seed, which is handed to the rule, for those that draw.
        gate: has each candidate validated before it is the next base; an iteration without a
            candidate that passes leaves the base as it is.
        say: called with a line, ``done`` and ``of`` (tensors), every ten seconds of a fuse.
    """

    def __init__(
        self,
        fuse: Rule,
        *,
        inbox: Inbox,
        draws: Callable[[int], int] = lambda iteration: iteration,
        gate: Gate | None = None,
        say: Callable[..., object] = lambda line, done, of: None,
    ) -> None:
        self._fuse = fuse
        self._inbox = inbox
        inbox.with_mean = getattr(fuse, "plain_mean", False)
        self._draws = draws
        self._gate = gate
        self._say = say
        self._base = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the base to every node that the grid shows: the cohort."""
        self._base = arrays
        content = RecordDict({records.ARRAYS: arrays, records.CONFIG: config})
        return [Message(content, node, MessageType.TRAIN) for node in grid.get_node_ids()]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fuse the accepted contributions, tensor by tensor, from disk.

        Their plain mean is there already where screening read them all and refused none.
        """
        accepted = {a.name: a for a in self._inbox.accepted()}
        base = Weights(records.Tensors(self._base))

        def make(names: Sequence[str]) -> ArrayRecord:
            if mean := self._inbox.mean(names):
                return records.pack(mean)
            given = [self._inbox.weights(accepted[name], base) for name in names]
            seed = self._draws(self._inbox.iteration)
            begin = partial(self._fuse, base, given, seed=seed)
            with told(begin, len(base.keys()), self._say) as fused:
                return records.pack(fused)

        def suspects() -> list[str]:
            far = dict(zip(accepted, self._inbox.diagnosis(base).without, strict=True))
            return sorted(far, key=lambda name: -far[name])

        if self._gate:
            least = max(self._inbox.quorum, getattr(self._fuse, "min_contributions", 1))
            fused = self._gate.choose([*accepted], make, suspects, least)
        else:
            fused = make([*accepted])
        if fused is None:
            return None, None
        # Dead now, but Flower's loop holds on to the first one until the end: a whole model. Who
        # is still at work may not have read it: in a simulation a message is not copied.
        if not self._inbox.at_work:
            self._base.clear()
        losses = [a.metrics["train-loss"] for a in accepted.values() if "train-loss" in a.metrics]
        metrics: dict[str, float] = {"contributions": len(accepted)}
        if losses:
            metrics["train-loss"] = sum(losses) / len(losses)
        return fused, MetricRecord(dict(metrics))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Evaluate nothing here: who starts the strategy evaluates between rounds."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return nothing: see `configure_evaluate`."""
        return None

    def summary(self) -> None:
        """Log what this strategy is."""
        log(INFO, "\t└──> ColD Fusion of the cohort's bodies")
