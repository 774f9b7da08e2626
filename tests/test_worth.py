"""`cold-flower worth` and `leave` on a small run of the demo, without Flower's engine."""

import io
import json
import shutil
from pathlib import Path

import pytest

from cold_flower.commands import scorers as scoring
from cold_flower.commands import worth as command
from cold_flower.commands.scorers import Scorers
from cold_flower.config import Config
from cold_flower.data.plan import plan
from cold_flower.errors import RunError
from cold_flower.reporting.runs import configuration
from cold_flower.reporting.worth import Worth
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import CONFIG, VALIDATION, Journal
from tests import in_process
from tests.test_cli import cold_flower
from tests.test_simulation import rows, simulate

ALL = ["kitchen", "music", "travel"]
KEEP = (
    "--set", "keep-contributions=1", "--set", "contributors-per-iteration=0",
    "--set", "gate.protocol=frozen", "--set", "gate.tolerance=1", "--set", "gate.task-tolerance=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with in_process.here(tmp_path_factory.mktemp("finished")) as cwd:
        simulate(cwd, "run", *KEEP)
    return cwd / "run"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def test_sets_are_fused_and_scored_as_the_run_does_it(run) -> None:
    found = command.worth(run, budget=8, say=lambda line: None)
    assert found.iteration == 2
    scored = {tuple(row["set"]): row for row in Journal(run / "worth").rows("scores.jsonl")}
    assert len(scored) == found.sets == 8
    repository = Repository(run)
    assert scored[()]["sha256"] == repository.manifest(1)["sha256"]
    assert scored[tuple(ALL)]["sha256"] == repository.manifest(2)["sha256"]
    for names, iteration in (((), 1), (tuple(ALL), 2)):  # what the gate heard of the same weights
        sha256 = repository.manifest(iteration)["sha256"]
        heard = {
            row["contributor"]: row["value"]
            for row in rows(run, VALIDATION)
            if row["base"] == sha256
        }
        assert scored[names]["scores"] == heard
    value = {names: sum(row["scores"].values()) / 3 for names, row in scored.items()}
    for name in ALL:
        rest = tuple(other for other in ALL if other != name)
        assert found.leave_one_out[name] == pytest.approx(value[tuple(ALL)] - value[rest])
        one, other = rest
        pairs = [tuple(sorted((name, someone))) for someone in rest]
        by_hand = (
            2 * (value[(name,)] - value[()])
            + (value[pairs[0]] - value[(one,)])
            + (value[pairs[1]] - value[(other,)])
            + 2 * (value[tuple(ALL)] - value[rest])
        ) / 6
        assert found.shapley[name] == pytest.approx(by_hand)
    assert sum(found.shapley.values()) == pytest.approx(found.whole - found.base)
    plain = json.loads((run / "worth" / "0002-frozen-dev.json").read_text())
    assert plain["shapley"] == found.shapley
    assert "<svg" in (run / "worth" / "0002-frozen-dev.svg").read_text()


def test_a_stopped_command_goes_on(run, monkeypatch) -> None:
    score, scored = Scorers.scores, []

    def stopped(self, body, **asked):
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(body)
        return score(self, body, **asked)

    with monkeypatch.context() as patch:
        patch.setattr(Scorers, "scores", stopped)
        with pytest.raises(KeyboardInterrupt):
            command.worth(run, budget=7, say=lambda line: None)
    again = []
    monkeypatch.setattr(
        Scorers, "scores", lambda self, body, **kw: again.append(body) or score(self, body, **kw)
    )
    found = command.worth(run, budget=7, say=lambda line: None)
    assert len(again) == found.sets - 3
    assert command.worth(run, budget=7, say=lambda line: None) == found
    assert len(again) == found.sets - 3
    command.worth(run, budget=5, split="test", say=lambda line: None)
    assert len(again) == found.sets - 3 + 5  # another split is another score


def test_processes_beside_each_other_score_as_this_one(run, monkeypatch) -> None:
    config, body = Config.from_flat(configuration(run)), dict(Repository(run).body(2).items())
    index = {name: plan(config).names.index(name) for name in ALL}
    asked = {"protocol": "frozen", "split": "dev", "iteration": 2}
    with Scorers(config, index, run / "contributors") as scorers:
        here = scorers.scores(body, **asked)
        assert not scorers._workers  # a small one
        monkeypatch.setattr(scoring, "SMALL", 0)
        assert scorers.scores(body, **asked) == here
        assert scorers.scores(body, **asked) == here
        assert len(scorers._workers) in (1, 2, 3)
        scorers._workers[0]._process.kill()
        with pytest.raises(RunError, match="a process that scores ended with exit code -9"):
            scorers.scores(body, **asked)
    assert {*here} == {*ALL}


def test_what_the_command_prints(run) -> None:
    done = cold_flower("worth", str(run), "--budget", "6", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert "1 the base: " in done.stdout
    assert "iteration 2: what each contribution is worth" in done.stdout
    assert "6 sets were scored" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["1"], r"iteration 1 are not kept \(keep-contributions is 1; kept: 2\)"),
        (["0"], "iteration 0 of .* is the start"),
        (["9"], "no iteration 9"),
        (["--budget", "4"], "budget is 4, expected at least 5: the base, all 3 contributions"),
        (["--protocol", "frozn"], "unknown protocol 'frozn'. Did you mean 'frozen'"),
        (["--split", "train"], "unknown split 'train'. Valid: dev, test"),
        (["--tolerance", "-1"], "tolerance is a share from 0 to 1"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line(run, arguments, words) -> None:
    done = cold_flower("worth", str(run), *arguments, cwd=run.parent)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(done.stderr)


def reconfigured(run: Path, **keys) -> None:
    about = json.loads((run / CONFIG).read_text())
    (run / CONFIG).write_text(json.dumps({**about, "config": {**about["config"], **keys}}))


def test_runs_that_cannot_be_scored_here_say_so(run) -> None:
    reconfigured(run, **{"sites.allow": "ann,bob"})
    with pytest.raises(RunError, match="run with sites: the data are there.* gate.protocol has"):
        command.worth(run)
    reconfigured(run, **{"sites.allow": "", "baseline": "multitask"})
    with pytest.raises(RunError, match=r"is a baseline \(multitask\)"):
        command.worth(run)
    reconfigured(run, baseline="")
    shutil.rmtree(run / "contributions")
    with pytest.raises(RunError, match="keeps no contributions: keep-contributions = N keeps"):
        command.worth(run)


def test_other_weights_than_were_published_are_told(run) -> None:
    path = run / "iterations" / "0002" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "sha256": "0" * 64}))
    said = []
    command.worth(run, budget=5, say=said.append)
    assert sum("WARNING: fused here, iteration 2 is" in line for line in said) == 1


def test_who_left_is_asked_nothing_and_the_run_goes_on(run, in_process) -> None:
    done = cold_flower("leave", str(run), "music", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert "iteration 1 cannot be replayed: the contributions of iteration 1" in done.stdout
    again = [*KEEP, "--resume", "--set", "iterations=3"]
    shown = simulate(run.parent, "run", *again, "--dry-run").stdout
    assert "3           kitchen, travel" in shown
    assert "3 contributors evaluate: travel, kitchen, market" in shown
    before = len(rows(run, VALIDATION))
    resumed = simulate(run.parent, "run", *again).stdout
    assert "music left this run: neither its contribution nor a score is asked" in resumed
    three = [r["contributor"] for r in rows(run, "contributions.jsonl") if r["iteration"] == 3]
    assert three == ["kitchen", "travel"]
    scored = {r["task"] for r in rows(run, "scores.jsonl") if r["iteration"] == 3}
    assert scored == {"kitchen", "travel", "market"}
    assert "music" not in {r["contributor"] for r in rows(run, VALIDATION)[before:]}
    with pytest.raises(RunError, match="left"):
        from cold_flower.commands.leave import leave

        leave(run, "music", say=lambda line: None)


def test_a_quorum_that_nobody_can_reach_is_said_before_the_start(run, in_process) -> None:
    reconfigured(run, quorum=3)
    cold_flower("leave", str(run), "music", cwd=run.parent)
    again = ["simulate", "demo", "--set", "quorum=3", "--set", "iterations=3", *KEEP, "--resume"]
    from tests.test_simulation import SMALL

    done = cold_flower(*again[:2], *SMALL, *again[2:], "--run-dir", str(run), cwd=run.parent)
    assert done.returncode == 1
    assert "quorum is 3, but an iteration asks 2 contributors" in done.stderr


def found(orders: int, **shapley: float) -> Worth:
    error = dict.fromkeys(shapley, 0.01 if orders else 0.0)
    return Worth(1, "frozen", "dev", shapley, shapley, error, orders, 0.25, 0.005, 0.5, 0.5 + sum(shapley.values()), 9)  # fmt: skip


def test_the_table_by_hand() -> None:
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    drawn = found(11, a=-0.02, b=0.03)
    assert drawn.names == ["b", "a"]
    assert drawn.half("a") == pytest.approx(0.01 * 2.2281, abs=1e-5)  # t of 10 degrees
    console.print(drawn.table())
    text = console.export_text()
    assert "+3.00 ± 2.23" in text
    assert "-2.00 ± 2.23" in text
    assert (
        "the base scores 50.00, all contributions fused 51.00 (+1.00); 9 sets" in drawn.notes()[0]
    )
    assert "11 orders; 25 % of their steps counted as 0, within 0.5 points" in drawn.notes()[1]
    assert found(0, a=0.1).notes()[1] == "the Shapley values are exact: all sets were scored"
    one = found(1, a=0.1)
    assert one.plain()["error"] == {"a": 0.01}
