"""The records of a run directory."""

import hashlib
import json
import shutil

import pytest

from cold_flower.config import Config, Fusion
from cold_flower.data.facts import facts
from cold_flower.errors import RunError
from cold_flower.repository.journal import (
    PROGRESS,
    SCORES,
    Journal,
    check_new,
    check_same,
    load_config,
    others,
)

CONFIG = Config.from_flat({"iterations": 2})


def changed(**keys) -> Config:
    flat = {k.replace("_", "-"): v for k, v in keys.items()}
    return Config.from_flat({**CONFIG.flat(), "resume": True, **flat})


def test_a_run_directory_is_used_once(tmp_path) -> None:
    Journal(tmp_path / "run").open(CONFIG, {"versions": "x"})
    assert load_config(tmp_path / "run") == CONFIG.flat()
    for attempt in (
        lambda: Journal(tmp_path / "run").open(CONFIG, {}),
        lambda: check_new(tmp_path / "run"),
    ):
        with pytest.raises(RunError, match="exists: add --resume"):
            attempt()


def test_only_more_iterations_may_differ_on_resume(tmp_path) -> None:
    journal = Journal(tmp_path / "run")
    journal.open(CONFIG, {})
    journal.write("result.json", {"status": "completed"})
    journal.unlock()
    journal.open(changed(iterations=5), {})
    assert load_config(tmp_path / "run")["iterations"] == 5
    assert not (tmp_path / "run" / "result.json").exists()
    journal.unlock()
    journal.open(changed(iterations=5, **{"sites.allow": "ann,bob"}), {})  # they come and go
    with pytest.raises(RunError, match="iterations = 3: it was to have 5"):
        journal.open(changed(iterations=3), {})
    with pytest.raises(RunError, match=r"changed buffer \(was 0, now 2\), seed \(was 0, now 4\)"):
        journal.open(changed(seed=4, buffer=2), {})
    with pytest.raises(RunError, match="holds no run"):
        Journal(tmp_path / "other").open(changed(), {})


def test_where_somebody_does_not_come_back_the_run_waits_for_fewer_and_says_so(tmp_path) -> None:
    journal = Journal(tmp_path / "run")
    sites = {"iterations": 5, "sites.allow": "ann,bob,cat"}
    journal.open(changed(resume=False, quorum=3, **sites), {})
    journal.unlock()
    journal.open(changed(quorum=2, **sites, **{"wait.nodes": 7.0}), {})
    assert [event["line"] for event in journal.rows(PROGRESS)] == [
        "the run goes on with quorum = 2; until now 3",
        "the run goes on with wait.nodes = 7.0; until now 120.0",
    ]
    assert load_config(tmp_path / "run")["quorum"] == 2
    # Elsewhere a sweep would take what ended with another one for its own, done before.
    with pytest.raises(RunError, match=r"changed quorum \(was 2, now 1\)"):
        check_same(tmp_path / "run", changed(quorum=1, iterations=5))
    # Where nobody waits it is how many a base is made of.
    asynchronous = {**sites, "schedule": "asynchronous", "contributors-per-iteration": 0}
    config = changed(**asynchronous, quorum=2)
    journal.write("config.json", {"config": config.flat()})
    with pytest.raises(RunError, match=r"changed quorum \(was 2, now 3\)"):
        check_same(tmp_path / "run", changed(**asynchronous, quorum=3))


def test_a_run_goes_on_though_a_key_came_since(tmp_path) -> None:
    """It had what is the default."""
    Journal(tmp_path / "run").open(CONFIG, {})
    file = tmp_path / "run" / "config.json"
    kept = json.loads(file.read_text())
    del kept["config"]["loss-scaling"]
    file.write_text(json.dumps(kept))
    check_same(tmp_path / "run", changed())
    with pytest.raises(RunError, match="changed loss-scaling .was '', now 'log-classes'"):
        check_same(tmp_path / "run", changed(loss_scaling="log-classes"))


def test_a_start_that_was_cut_off_may_be_repeated(tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", ".config.json", "flower.log"):  # the disk was full
        (run / name).write_text("")
    Journal(run).open(CONFIG, {})
    assert load_config(run)["seed"] == CONFIG.seed


def test_one_run_at_a_time(tmp_path) -> None:
    Journal(tmp_path / "run").open(CONFIG, {})
    with pytest.raises(RunError, match="another run is at work"):
        Journal(tmp_path / "run").open(changed(), {})


def test_a_line_that_was_cut_off_is_dropped(tmp_path) -> None:
    journal = Journal(tmp_path)
    journal.append(SCORES, [{"a": 1}, {"a": 2}])
    with (tmp_path / SCORES).open("a") as file:
        file.write('{"a": ')
    assert journal.rows(SCORES) == [{"a": 1}, {"a": 2}]
    assert (tmp_path / SCORES).read_text().endswith('{"a": ')  # who reads leaves the file alone
    journal.append(SCORES, [{"a": 3}])
    assert [json.loads(line)["a"] for line in (tmp_path / SCORES).read_text().splitlines()] == [
        1,
        2,
        3,
    ]


def test_an_index_finds_what_a_whole_read_finds_and_reads_a_line_once(
    tmp_path, monkeypatch
) -> None:
    journal, read = Journal(tmp_path), []
    loads = json.loads
    assert journal.where(SCORES, "iteration", 1) == []  # no file yet
    for step in range(1, 30):
        journal.append(SCORES, [{"iteration": step, "n": n, "base": step % 2} for n in range(3)])
        if step == 20:  # a process was killed while it wrote, the next one goes on
            with (tmp_path / SCORES).open("a") as file:
                file.write('{"iteration": ')
        whole = journal.rows(SCORES)
        monkeypatch.setattr("json.loads", lambda line: read.append(line) or loads(line))
        for key, value in (("iteration", step), ("iteration", 1), ("base", 0), ("iteration", 99)):
            found = journal.where(SCORES, key, value)
            assert found == [row for row in whole if row[key] == value]
        read.clear()
        assert len(journal.where(SCORES, "iteration", step)) == len(read) == 3
        monkeypatch.setattr("json.loads", loads)
    journal.write(SCORES, {})  # a shorter file in its place
    assert journal.where(SCORES, "iteration", 1) == []


def test_a_run_that_goes_on_with_other_files_or_versions_says_so_once(tmp_path) -> None:
    rule, run = tmp_path / "mine.py", tmp_path / "run"
    journal = Journal(run)

    def made_with() -> dict[str, str]:
        return facts(Config(fusion=Fusion(rule=f"{rule}:mine")))

    def opens(text: str, config: Config) -> list[str]:
        rule.write_text(text)
        said = len(journal.rows(PROGRESS))
        journal.open(config, made_with())
        journal.unlock()
        return [event["line"] for event in journal.rows(PROGRESS)[said:]]

    going_on = changed()
    journal.open(CONFIG, {})  # of which nothing is known
    journal.unlock()
    assert opens("one", going_on) == []
    shutil.rmtree(run)
    assert opens("one", CONFIG) == opens("one", going_on) == []
    assert others(run, made_with()) == []
    first = json.loads((run / "config.json").read_text())
    (line,) = opens("two", going_on)
    one, two = (hashlib.sha256(text.encode()).hexdigest() for text in ("one", "two"))
    assert line == (f"WARNING: the run goes on with other fusion.rule file: {two}; until now {one}")
    assert opens("two", going_on) == []
    kept = json.loads((run / "config.json").read_text())
    (resumed,) = kept.pop("resumed")
    assert resumed.keys() == {"time", "fusion.rule file"}
    assert kept == {**first, "config": going_on.flat()}
    assert len(opens("one", going_on)) == 1
    assert others(run, made_with()) == ["fusion.rule file"]  # it was
    assert {"versions", "code", "fusion.rule file"} < first.keys()
    assert "suite file" not in first
