"""What goes to TensorBoard or W&B."""

import pytest

from cold_flower.config import Config
from cold_flower.reporting import trackers

SCORES = [
    {"protocol": "frozen", "task": "a", "group": "seen", "value": 0.5},
    {"protocol": "frozen", "task": "b", "group": "seen", "value": 0.7},
    {"protocol": "frozen", "task": "c", "group": "unseen", "value": 0.1},
]
SENT = [{"name": "a", "diff-norm": 2.0, "cosine": None, "seconds": 3.0}]


def test_values_by_name() -> None:
    assert trackers.named_values(SCORES, SENT) == {
        "frozen/a": 0.5,
        "frozen/b": 0.7,
        "frozen/c": 0.1,
        "frozen/mean-seen": pytest.approx(0.6),
        "frozen/mean-unseen": 0.1,
        "contribution/diff-norm/a": 2.0,
        "contribution/seconds/a": 3.0,
    }


def test_tensorboard_holds_the_values(tmp_path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = Config.from_flat({"log": "tensorboard"})
    for iteration in (0, 1):  # the second time as a resumed run
        with trackers.open(config, tmp_path, "run") as tracker:
            tracker.log(iteration, SCORES, SENT)
    read = events.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    points = read.Scalars("frozen/mean-seen")
    assert [(p.step, p.value) for p in points] == [(0, pytest.approx(0.6)), (1, pytest.approx(0.6))]


def test_nothing_is_opened_unless_asked_for(tmp_path) -> None:
    with trackers.open(Config(), tmp_path, "run") as tracker:
        tracker.log(0, SCORES, SENT)
    assert list(tmp_path.iterdir()) == []
