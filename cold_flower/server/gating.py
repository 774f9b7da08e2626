"""The gate of a run: the contributors score each candidate, and the base that it would replace."""

from flwr.app import ArrayRecord

from cold_flower.config import Config
from cold_flower.repository.bases import Repository
from cold_flower.server.evaluation import Evaluation
from cold_flower.server.participants import Contributors
from strategies import records
from strategies.fusion import fingerprint
from strategies.gate import Gate
from strategies.inbox import Inbox


def gate(
    config: Config,
    participants: Contributors,
    evaluation: Evaluation,
    repository: Repository,
    inbox: Inbox,
) -> Gate | None:
    """Return the gate that a run is to have; None without one.

    Args:
        config: the run's.
        participants: who votes: all that contribute.
        evaluation: has them score.
        repository: of the bases; the start is published.
        inbox: knows which iteration is being made.
    """
    limits = config.gate
    if not limits.protocol:
        return None

    def candidate(arrays: ArrayRecord) -> dict[str, float]:
        sha256 = fingerprint(records.unpack(arrays))
        return evaluation.validate(inbox.iteration, sha256, lambda: arrays, "a candidate")

    def base() -> dict[str, float]:
        head = repository.latest() or 0
        return evaluation.validate(
            inbox.iteration,
            repository.sha256(head),
            lambda: records.pack(repository.body(head).items()),
            f"the current base {head}, to compare with",
        )

    return Gate(
        candidate,
        base,
        tolerance=limits.tolerance,
        task_tolerance=limits.task_tolerance,
        budget=limits.budget,
        voters=lambda: len(participants.training),
    )
