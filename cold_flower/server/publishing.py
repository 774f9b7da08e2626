"""Publish what an iteration made, with what it was made of."""

from flwr.app import ArrayRecord

from cold_flower.config import Config
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import CONTRIBUTIONS, Journal
from cold_flower.repository.kept import Kept
from cold_flower.repository.manifests import rejected
from cold_flower.server.manifest import (
    accepted_norms,
    add_norms,
    contribution_rows,
    describe,
    moved,
)
from strategies import records
from strategies.fusion import Weights
from strategies.gate import Gate
from strategies.inbox import Inbox


class Publishing:
    """Makes a base of what the strategy fused from the inbox.

    Making it finishes the iteration that a crash left between publishing and its end.

    Args:
        config: the run's.
        journal: where contributions are recorded.
        repository: of the bases.
        inbox: of the iteration's contributions.
        gate: that judged the candidate, if there is one.
    """

    def __init__(
        self,
        config: Config,
        journal: Journal,
        repository: Repository,
        inbox: Inbox,
        gate: Gate | None,
    ) -> None:
        self._config = config
        self._journal = journal
        self._repository = repository
        self._inbox = inbox
        self._gate = gate
        self._own_step = 0.0
        self._end()
        self.norms = accepted_norms(repository)
        """Of what each contributor gave along the lineage; a further base adds to them."""

    def measured(self, size: float) -> None:
        """Take the length of the rule's own step, before ``fusion.norm``."""
        self._own_step = size

    def publish(self, parent: int, iteration: int, arrays: ArrayRecord) -> None:
        """Publish a base, record its contributions, empty the inbox; say what the gate decided."""
        config, repository, say = self._config, self._repository, self._journal.say
        judgement = self._gate.judgement if self._gate else None
        for name in judgement.left_out if judgement else ():
            self._inbox.refuse(name, "gate: the validation scores are better without it")
        if judgement and not judgement.accepted:
            say(f"iteration {iteration} rejected by the gate: {judgement.reason}")
        body = repository.body(parent)
        diagnosis = self._inbox.diagnosis(body)
        fused = Weights(records.Tensors(arrays))
        manifest = describe(config, self._inbox.contributions.values(), diagnosis, judgement)
        # With a gate the rule's last step may be that of a candidate that was not taken.
        own = 0.0 if judgement else self._own_step
        # A candidate that was rejected has left its memory in the inbox; the base keeps its own.
        state = repository.state() if rejected(manifest) else self._inbox.state
        repository.publish(
            iteration,
            parent,
            fused,
            manifest,
            further=lambda: moved(repository.body(0), body, fused, diagnosis.mean, own),
            state=state if state and state.exists() else None,
            decay=config.fusion.ema,
        )
        published = repository.manifest(iteration)
        if own := published.get("own-length", 0.0):
            say(
                f"iteration {iteration}: the rule's own step is {own:.2f} times the plain mean's; "
                f"with fusion.norm and what follows it the base moved {published['length']:.2f}"
            )
        record_contributions(self._journal, repository, iteration)
        add_norms(self.norms, manifest)
        self._end()

    def _end(self) -> None:
        """Empty the inbox of an iteration that is published; put aside what is to be kept."""
        iteration = self._inbox.iteration
        rows = self._repository.manifest(iteration).get("contributors", [])
        if keep := self._config.keep_contributions:
            Kept(self._journal.run_dir).take(iteration, keep)
        refused = [row for row in rows if row["verdict"] == "refused"]
        self._inbox.drop({row["name"]: row["reason"] for row in refused})


def record_contributions(journal: Journal, repository: Repository, iteration: int) -> None:
    """Copy an iteration's contributors from its manifest, if a crash did not allow it yet."""
    there = journal.where(CONTRIBUTIONS, "iteration", iteration)
    recorded = {row["contributor"] for row in there}
    rows = contribution_rows(repository.manifest(iteration))
    missing = [row for row in rows if row["contributor"] not in recorded]
    journal.append(CONTRIBUTIONS, missing)
