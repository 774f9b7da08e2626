"""The lineage, drawn and rolled back."""

import re

import pytest

from cold_flower.commands import history
from cold_flower.config import Config
from cold_flower.errors import RunError
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import LEFT, SCORES, Journal
from strategies.fusion import Weights
from tests.conftest import held
from tests.test_repository import BODY, moved, save


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    journal = Journal(folder)
    journal.open(Config.from_flat({"iterations": 2}), {})
    journal.unlock()
    repository = Repository(folder)
    about = {"rule": "average"}
    repository.create(save, BODY, "net.", {**about, "base-model": "tiny"})
    given = [{"name": n, "verdict": v} for n, v in (("a", "accepted"), ("b", "refused"))]
    repository.publish(1, 0, Weights(moved(1)), {**about, "contributors": given, "length": 1.5})
    gate = {"accepted": False, "reason": "the mean falls by 0.2000 (tolerance 0.01)"}
    repository.publish(2, 1, Weights(BODY), {**about, "contributors": given, "gate": gate})
    row = {"task": "t", "protocol": "frozen", "group": "seen", "base": "x", "n_test": 9, "seed": 0}
    scores = [{**row, "iteration": i, "value": v} for i, v in ((0, 0.5), (1, 0.75), (2, 0.75))]
    Journal(folder).append(SCORES, scores)
    return folder


def drawn(folder) -> list[str]:
    return [re.sub(r"  \d{4}-\S+", "", line) for line in history.log(folder)]


def test_a_rollback_to_what_somebody_gave_who_left_says_so(run) -> None:
    assert "WARNING" not in history.rollback(run, 1)
    Journal(run).append(LEFT, [{"contributor": "a"}, {"contributor": "b"}])
    said = history.rollback(run, 1)
    assert f"WARNING: base 1 holds what a gave before leaving: cold-flower leave {run} a" in said
    assert "WARNING" not in history.rollback(run, 0)


def test_the_log(run) -> None:
    rejected = "rejected by the gate (the mean falls by 0.2000 (tolerance 0.01))"
    assert drawn(run) == [
        f"* 0002 (latest)  from 0001; {rejected}, 1 accepted, 1 refused; frozen seen 75.0 (+25.0)",
        "* 0001  from 0000; average, 1 accepted, 1 refused, length 1.50; frozen seen 75.0 (+25.0)",
        "* 0000  tiny; frozen seen 50.0",
    ]


def test_a_rollback_says_how_to_go_on(run) -> None:
    said = history.rollback(run, 1)
    assert "latest is 0001 (was 0002); nothing is deleted. The next iteration is 0003" in said
    assert f"--resume --run-dir {run} --set iterations=3" in said
    assert [line[:6] for line in drawn(run)] == ["| x 00", "* 0001", "* 0000"]


def test_a_run_at_work_is_left_alone(run) -> None:
    with held(run), pytest.raises(RunError, match="another run is at work"):
        history.rollback(run, 1)
    with pytest.raises(RunError, match="no iteration 7 .*there: 0, 1, 2"):
        history.rollback(run, 7)
    assert Repository(run).latest() == 2


def test_what_is_no_run(tmp_path) -> None:
    for call in (lambda: list(history.log(tmp_path)), lambda: history.rollback(tmp_path, 0)):
        with pytest.raises(RunError, match="holds no run"):
            call()


def test_a_rollback_lets_go_of_the_run(run) -> None:
    history.rollback(run, 0)
    journal = Journal(run)
    journal.lock()  # as a run that goes on does, from the same process
    journal.unlock()
