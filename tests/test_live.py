"""report.html while a run goes on, and the pictures of a run."""

import json
import os
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from cold_flower.config import Config
from cold_flower.reporting import live, pictures
from cold_flower.reporting.markup import SCRIPT, STYLE
from cold_flower.reporting.progress import Progress
from cold_flower.reporting.svg import rect, text
from cold_flower.runtime import runner
from strategies.diagnostics import drift
from strategies.fusion import Weights
from tests.test_cli import cold_flower
from tests.test_repository import moved
from tests.test_simulation import SMALL

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), "")


def titles(picture: str) -> list[str]:
    """Parse a drawing, which is part of a page; return what shows on hover."""
    tree = ElementTree.fromstring(picture)
    return [one.text or "" for one in tree.iter("title")]


def base(iteration: int, parent: int | None, **more) -> dict:
    return {"iteration": iteration, "parent": parent, "rule": "average", **more}


def given(name: str, verdict: str = "accepted", **more) -> dict:
    return {"name": name, "verdict": verdict, "reason": "", **more}


def test_what_is_written_is_text_not_markup() -> None:
    assert "<title>a &lt;b&gt; &amp;</title>" in rect(0, 0, 1, 1, "good", title="a <b> &")
    assert text(0, 0, "<b>").endswith("&lt;b&gt;</text>")


def test_the_lineage_tells_each_base() -> None:
    """0 - 1 - 3, of which 3 was rejected; 2 was left behind by a rollback to 1."""
    manifests = [
        base(0, None),
        base(1, 0, contributors=[given("ann"), given("bob", "refused")], length=1.25),
        base(2, 1),
        base(3, 1, gate={"accepted": False, "reason": "worse"}),
    ]
    drawn = pictures.lineage(manifests, [0, 1, 3], {1: "frozen seen 50.0"})
    told = titles(drawn)
    assert told[1] == (
        "base 1, from 0\naverage, 1 accepted, 1 refused\nlength 1.25\nfrozen seen 50.0"
    )
    assert "rejected by the gate: worse" in told[3]
    kinds = re.findall(r'<circle [^>]*class="(\w+) ?(\w*)"', drawn)
    assert kinds == [("good", ""), ("good", ""), ("gone", ""), ("bad", "now")]
    heights = re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', drawn)
    assert heights[2] > heights[1] == heights[3]


def test_who_contributed_when() -> None:
    cohort = [
        given("ann", **{"dev-start": 0.3, "dev-accuracy": 0.8, "diff-norm": 1.5, "cosine": 0.25}),
        given("bob", "refused", reason="norm"),
        given("cat", "missing", reason="late"),
        given("dan", **{"from": "dropbox", "recognised": "base 0, the nearest", "staleness": 1}),
    ]
    drawn = pictures.contributed([base(0, None), base(1, 0, contributors=cohort)])
    assert titles(drawn) == [
        "ann, iteration 1: accepted\ndev 30.0 to 80.0\nnorm 1.5\ncosine with the mean 0.25",
        "bob, iteration 1: refused\nnorm",
        "cat, iteration 1: missing\nlate",
        "dan, iteration 1: accepted\nfrom a base 1 older\nfrom the dropbox: base 0, the nearest",
    ]
    assert re.findall(r'class="(\w+)" fill-opacity="([\d.]+)"', drawn) == [
        ("good", "1.00"), ("bad", "1.00"), ("gone", "1.00"), ("good", "1.00"),
    ]  # fmt: skip
    assert pictures.contributed([base(0, None)]) == ""


def test_cosines_by_hand() -> None:
    drawn = pictures.cosines({"cosines": {"ann": [1.0, -0.2], "bob": [-0.2, 1.0]}})
    assert titles(drawn) == ["ann and bob: -0.200", "bob and ann: -0.200"]
    assert 'class="bad" fill-opacity="1.00"' in drawn
    assert pictures.cosines({"cosines": {"ann": [1.0]}}) == pictures.cosines({}) == ""


def test_drift_is_the_norm_of_what_moved() -> None:
    start, body = Weights(moved(0)), Weights(moved(2))
    found = drift(start, body)  # w holds four numbers and b two, each in a layer of its own
    assert found == {"w": 4.0, "b": pytest.approx(8**0.5)}
    drawn = pictures.drift([base(0, None), base(1, 0, drift=found)])
    assert titles(drawn) == ["w: 4", "b: 2.83"]
    assert pictures.drift([base(0, None), base(1, 0)]) == ""  # of an older run


def test_each_task_has_a_picture() -> None:
    rows = [
        {"task": task, "protocol": "frozen", "group": "seen", "iteration": i, "value": value}
        for task, value in (("sst2", 0.5), ("<rte>", 0.6))
        for i in (0, 2)
    ]
    told = titles(pictures.tasks(rows))
    assert told == [
        "<rte>, frozen, base 0: 60.0", "<rte>, frozen, base 2: 60.0",
        "sst2, frozen, base 0: 50.0", "sst2, frozen, base 2: 50.0",
    ]  # fmt: skip
    assert pictures.tasks(rows[:1]) == ""  # the start alone


def events(*parts: dict) -> Progress:
    progress = Progress(100.0)
    for at, part in enumerate(parts, 101):
        progress.take({"time": float(at), "line": "", **part})
    return progress


ASKING = {"phase": "finetune", "iteration": 1, "done": 0, "of": 2, "asked": ["ann", "bob"]}
CAME = {"phase": "finetune", "iteration": 1, "done": 1, "of": 2, "who": "ann"}


def test_progress_knows_who_works_and_what_was_done() -> None:
    progress = events(
        {"server": 7}, ASKING, {"begun": "ann"}, {"begun": "bob"},
        {**CAME, "verdict": "accepted", "seconds": 2.0, "worker": "11"},
    )  # fmt: skip
    assert progress.begun == {"bob": 104.0}
    assert progress.arrived["ann"].seconds == 2.0
    (span,) = progress.spans
    assert (span.phase, span.who, span.start, span.end, span.worker) == (
        "finetune", "ann", 103.0, 105.0, "11",
    )  # fmt: skip
    assert progress.usual() == {"ann": 2.0, "": 2.0}
    # Screening refuses it later: its work stays.
    refused = {**CAME, "done": 2, "verdict": "refused", "reason": "norm"}
    progress.take({"time": 106.0, "line": "", **refused})
    one = progress.arrived["ann"]
    assert (one.verdict, one.reason, one.seconds) == ("refused", "norm", 2.0)
    # A run that goes on: what was done before is another picture.
    progress.take({"time": 900.0, "line": "", "server": 8})
    assert progress.spans == []


def test_the_timeline_says_how_idle_each_worker_was() -> None:
    progress = events(
        ASKING,
        {**CAME, "seconds": 1.0, "worker": "11"},
        {**CAME, "who": "bob", "done": 2, "seconds": 2.0, "worker": "12"},
        {**CAME, "iteration": 2, "seconds": 1.0, "worker": "11"},
    )  # 101 to 104: of 11 one second and one, of 12 two
    drawn = pictures.timeline(progress)
    assert re.findall(r"(\d+)% idle", drawn) == ["33", "33"]
    assert titles(drawn)[0] == "ann: finetune 1, 1.0 s"
    assert pictures.timeline(Progress(0.0)) == ""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"config": Config().flat(), "run": "x"}))
    return tmp_path


def config_of(folder: Path) -> Config:
    return Config.from_flat({"run-dir": str(folder)})


def test_the_page_follows_the_run_and_stops_when_it_has_ended(folder, monkeypatch) -> None:
    monkeypatch.setattr(live, "EVERY", 0.01)
    progress, opened = events(ASKING, {"begun": "ann"}), []
    page = folder / "report.html"
    with live.live(config_of(folder), progress, opened.append) as take:
        take({"line": "iteration 1: asking 2 contributors"})
        deadline = time.monotonic() + 5
        while not opened and time.monotonic() < deadline:
            time.sleep(0.01)
        during = page.read_text()
    after = page.read_text()
    assert opened == [page]  # once
    assert "location.reload(), 3000" in during
    assert "iteration 1: asking 2 contributors" in during
    assert re.search(r"<span>ann</span><div class=bar><div class='work unknown'", during)
    assert re.search(r"<span>bob</span>.*?<span class=small>asked</span>", during)
    assert "location.reload" not in after
    assert "at work no more" in after
    assert not list(folder.glob(".report.html"))


def test_refused_ones_have_their_reason_and_large_cohorts_are_cut(folder) -> None:
    names = [f"n{i}" for i in range(100)]
    progress = events(
        {**ASKING, "asked": names},
        {**CAME, "who": "n7", "verdict": "refused", "reason": "<far>"},
        {**CAME, "who": "n8", "seconds": 4.0},
        {"begun": "n9"},
    )
    page = live._Page(config_of(folder), progress, None)
    page.write()
    written = (folder / "report.html").read_text()
    assert written.count("class=bar") == live.ROWS
    assert "and 40 more, 2 have answered" in written
    assert "of about 4" in written
    progress = events(ASKING, {**CAME, "verdict": "refused", "reason": "<far>"})
    page = live._Page(config_of(folder), progress, None)
    page.write()
    assert "refused: &lt;far&gt;" in (folder / "report.html").read_text()


def test_a_run_goes_on_without_its_page(tmp_path, monkeypatch) -> None:
    """Before there is a run, on a full disk, and where an event comes while it is written."""
    page = live._Page(config_of(tmp_path), events(ASKING), None)
    page.write()
    assert not (tmp_path / "report.html").exists()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "report.html").mkdir()  # cannot be replaced by a file
    page.write(ended=True)
    assert (tmp_path / "report.html").is_dir()


def test_pictures_are_drawn_once_and_seldom(folder, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(live, "drawings", lambda run, progress: drawn.append(1) or "")
    monkeypatch.setattr(live, "SHARE", 1e9)
    page = live._Page(config_of(folder), events(ASKING), None)
    page.write()
    page.write()
    assert len(drawn) == 1
    page.take({"line": "", "published": 1})
    page.write()
    assert len(drawn) == 1  # it would take too much of the time
    page.write(ended=True)
    assert len(drawn) == 2


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run in this process."""
    from tests.in_process import simulate

    cwd = tmp_path_factory.mktemp("live")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "simulate", simulate)
        done = cold_flower("simulate", "demo", *SMALL, "--run-dir", "run", cwd=cwd, timeout=240)
    assert done.returncode == 0, done.stderr
    return cwd / "run" / "report.html"


@pytest.mark.real
def test_a_runs_report_has_its_pictures(report) -> None:
    page = report.read_text()
    assert "location.reload" not in page
    for title in ("Lineage", "Who contributed when", "Scores, task by task", "Drift from the start",
                  "Contributions to base 2", "Workers"):  # fmt: skip
        assert f"<h3>{title}</h3>" in page
    for drawing in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(drawing)
    used = {kind for kinds in re.findall(r'class="([\w -]*)"', page) for kind in kinds.split()}
    assert {one for one in used - {"small", "strong"} if f".{one}" not in STYLE} == set()


@pytest.mark.real
@pytest.mark.skipif(not CHROMIUM, reason="no chromium here")
def test_the_page_in_a_browser(report, tmp_path) -> None:
    """No script fails; the switch is there, and turns the page dark."""
    page, press = report.read_text(), "document.getElementById('theme').click()"
    asked = f"<script>addEventListener('load', () => {{ {press} }})</script>"
    (tmp_path / "page.html").write_text(page.replace(f"<script>{SCRIPT}</script>",
                                                     f"<script>{SCRIPT}</script>{asked}"))  # fmt: skip
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom",
        (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    home = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=home)
    assert "CONSOLE" not in done.stderr
    assert '<html lang="en" data-theme="dark">' in done.stdout
    assert '<button id="theme">' in done.stdout
