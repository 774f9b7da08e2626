"""Sites of their own through Flower's deployment engine, and the page that says how."""

import configparser
import json
import random
import re
import shlex
import shutil
import subprocess
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from cold_flower.config import Config
from cold_flower.contributors import egress
from cold_flower.contributors.site import load_site
from cold_flower.data import demo
from cold_flower.errors import ConfigError, RunError
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import CONFIG, RESULT
from cold_flower.runtime import deploy
from cold_flower.runtime.experiments import merge
from cold_flower.server import sites
from tests.conftest import held
from tests.federation import PAGE, Federation, block
from tests.test_cli import cold_flower

RECIPE = """
base-model = "demo"
iterations = 1
contributors-per-iteration = 0
sites.allow = "clinic-a,clinic-b"
sites.minimum = 2
wait.nodes = 120
wait.replies = 120
evaluate.protocols = ""
finetune.max-epochs = 1
finetune.batch-size = 16
"""
UNITS = ("cold-flower-superlink.service", "cold-flower-supernode.service")


def write_demo(folder: Path, task: str, kind: str) -> None:
    """Write rows of a demo task under a clinic's own column and label names."""
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        columns = demo.columns(task, split, 0)
        rows = [
            {"review": text, "stars": ("bad", "good")[label]}
            for text, label in zip(columns["text"], columns["label"], strict=True)
            if label < 2
        ][:160]
        random.Random(0).shuffle(rows)
        if kind == "parquet":
            table = pyarrow.Table.from_pylist(rows)
            pyarrow.parquet.write_table(table, folder / f"{split}.parquet")
        else:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(lines)


@pytest.mark.real
@pytest.mark.skipif(
    not all(map(shutil.which, ("openssl", "ssh-keygen", "bash"))), reason="no openssl or ssh-keygen"
)
def test_two_sites_with_tls_and_keys_as_the_page_says(tmp_path) -> None:
    federation = Federation(tmp_path / "federation")
    try:
        federation.open()
        for name, task, kind in (
            ("clinic-a", "travel", "parquet"),
            ("clinic-b", "kitchen", "jsonl"),
        ):
            site = federation.site(name)
            write_demo(site.folder / "data", task, kind)
            site.run("site-init")
            path = site.folder / "site.toml"
            path.write_text(path.read_text().replace('base-model = "model"', 'base-model = "demo"'))
            site.start("supernode")
        run = federation.deploy(RECIPE, "first")
        rehearsed = federation.sites["clinic-a"].run("site-check", timeout=200)
        out, _ = run.communicate(timeout=300)
        logs = "\n".join(s.log("supernode") for s in federation.sites.values())
        assert run.returncode == 0, out + logs
        listed = federation.sites["clinic-a"].run("site-log")
    finally:
        federation.close()
    assert "signed by CN=cold-flower CA" in rehearsed
    assert rehearsed.endswith("ready\n")
    run_dir = federation.coordinator.folder / "first"
    rows = federation.rows("first", "contributions.jsonl")
    assert [(r["contributor"], r["verdict"]) for r in rows] == [
        ("clinic-a", "accepted"),
        ("clinic-b", "accepted"),
    ]
    for row in rows:  # what the coordinator has is what the site's log says it sent
        home = federation.sites[row["contributor"]].folder
        log = home / "own" / row["contributor"] / "sent.jsonl"
        sent = [json.loads(line) for line in log.read_text().splitlines()]
        assert [r["kind"] for r in sent] == ["query", "train"]
        assert sent[1]["sha256"] == row["sha256"]
        assert not list((federation.coordinator.folder).rglob(f"*{row['contributor']}*/tokens*"))
    (fab,) = re.findall(r"FAB sha256 ([0-9a-f]{64})", out)
    assert f"cold-flower.cold-flower.0.1.0.{fab[:8]}: the code that is installed here" in listed
    assert Repository(run_dir).manifest(1)["parent"] == 0


def test_every_block_of_the_page_is_marked_and_parses() -> None:
    for kind, text in re.findall(r"```(\w+)\n(.*?)```", PAGE, re.S):
        if kind == "bash":
            subprocess.run(["bash", "-n", "-c", text], check=True)
    marked = re.findall(r"<!-- (\w+): [\w.-]+ -->\n```", PAGE)
    assert len(marked) == len(re.findall(r"^```\w+$", PAGE, re.M))
    assert set(marked) == {"settings", "run", "start", "file"}


def test_the_experiment_of_the_page_is_one() -> None:
    table = tomllib.loads(block("file: partners.toml"))
    from cold_flower.toml import flatten

    sites.check(merge(flatten(table)))


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_what_the_page_starts(name) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[method-assign,assignment]
    unit.read_string(block(f"file: {name}"))
    program, *options = shlex.split(unit["Service"]["ExecStart"])
    shown = block(f"start: {Path(program).name.removeprefix('flower-')}")
    assert {o for o in options if o.startswith("--")} == set(re.findall(r"--[a-z-]+", shown))
    if "supernode" in name:  # before that Flower refuses a node that was killed
        assert int(unit["Service"]["RestartSec"]) >= 70
        assert unit["Service"]["UMask"] == "0077"  # what a site keeps is its own
    assert unit["Service"]["WorkingDirectory"].endswith("/empty")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_units(name, tmp_path) -> None:
    path = tmp_path / name
    text = re.sub(r"(ExecStart\w*)=\S+", r"\1=/bin/true", block(f"file: {name}"))
    path.write_text(re.sub(r"User=\w+\n", "", text))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60
    )
    complaints = [line for line in done.stderr.splitlines() if name in line]
    assert not complaints


def test_the_page_names_all_that_a_site_says_of_itself() -> None:
    (_, stated) = egress._STATED["query"]
    words = {
        "name": "its name",
        "examples": "number of examples",
        "tokens": "and tokens",
        "unknown": "`unknown`",
        "cut": "`cut`",
        "code": "hashes of code",
        "model": "and model",
        "visible-gpus": "visible GPUs",
        "worker": "process id",
    }
    (leaves,) = re.findall(r"Our ClientApp sends\n(.*?)\nNever data", PAGE, re.S)
    assert all(words.get(key, key) in " ".join(leaves.split()) for key in stated)


def test_nginx_passes_the_fleet_routes_alone() -> None:
    text = block("file: nginx.conf")
    assert text.count("{") == text.count("}")
    passed = re.findall(r"location (\S+) \{[^}]*\}?[^}]*proxy_pass", text)
    assert passed == ["/v1/fleet/"]
    assert "location / { return 403; }" in text


def test_site_init_writes_what_is_asked_and_nothing_twice(tmp_path) -> None:
    done = cold_flower("site", "init", "clinic-a", "--labels", "no, yes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = tomllib.loads((tmp_path / "site.toml").read_text())
    assert table["task"]["labels"] == ["no", "yes"]
    least = {"min-examples": 100, "min-test-examples": 50}
    assert {key: value for key, value in table["limits"].items() if value} == least
    hub = ("clinic-b", "hub.toml", "--hub", "--data", "nyu-mll/glue", "--text", "sentence")
    assert cold_flower("site", "init", *hub, cwd=tmp_path).returncode == 0
    task = tomllib.loads((tmp_path / "hub.toml").read_text())["task"]
    assert (task["source"], task["path"], task["text"]) == ("hub", "nyu-mll/glue", ["sentence"])
    again = cold_flower("site", "init", "clinic-a", cwd=tmp_path)
    assert again.returncode == 1
    assert "site.toml exists" in again.stderr
    wrong = cold_flower("site", "init", "Clinic A", "other.toml", cwd=tmp_path)
    assert "name is 'Clinic A'" in wrong.stderr
    assert not (tmp_path / "other.toml").exists()


@pytest.mark.parametrize(
    "odd", ['a"b', "C:\\daten\\neu", "zwei\nZeilen", "Müller 😀", "tab\tDEL\x7f", "it's # = ]"]
)
def test_site_init_writes_any_path_and_column(tmp_path, odd) -> None:
    asked = ("--data", odd, "--text", odd, "--text", "zweite", "--label", f"l{odd}")
    done = cold_flower(
        "site", "init", "clinic-a", *asked, "--labels", f"{odd},nein", "--model", odd, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    site = load_site(tmp_path / "site.toml")
    assert (site.task.path, site.task.text, site.task.label) == (odd, (odd, "zweite"), f"l{odd}")
    assert (site.task.labels, site.base_model) == ((odd, "nein"), odd)


def test_site_init_takes_two_texts_at_most(tmp_path) -> None:
    three = ("--text", "a", "--text", "b", "--text", "c")
    done = cold_flower("site", "init", "clinic-a", *three, cwd=tmp_path)
    assert done.returncode == 1
    assert "text is a list of one or two columns, got ['a', 'b', 'c']" in done.stderr
    assert not (tmp_path / "site.toml").exists()


def test_site_log_says_that_nothing_was_sent(tmp_path, own_home) -> None:
    assert cold_flower("site", "init", "clinic-a", cwd=tmp_path).returncode == 0
    done = cold_flower("site", "log", cwd=tmp_path)
    sent = own_home / "clinic-a" / "sent.jsonl"
    assert done.stdout == (
        f"there is no {sent}: nothing has left from COLD_FLOWER_HOME = {own_home} "
        "(has the SuperNode that one, too?)\n"
    )
    sent.parent.mkdir(parents=True)
    sent.write_text('{"time": "now", "kind": "query", "sent": true, "bytes": 0}\n')
    done = cold_flower("site", "log", cwd=tmp_path)
    assert done.stdout == f"now query  numbers, no weights\nevery value that left: {sent}\n"


def test_deploy_needs_sites(tmp_path) -> None:
    config = Config.from_flat({"run-dir": str(tmp_path / "run")})
    with pytest.raises(ConfigError, match="deploy is for sites of their own: --set sites.allow"):
        deploy.deploy(config, "partners", print)


def test_a_run_at_work_is_not_submitted_a_second_time(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(deploy, "_run", lambda *_: pytest.fail("submitted"))
    run, keys = tmp_path / "run", {"sites.allow": "*", "resume": True}
    config = Config.from_flat({"run-dir": str(run), **keys})
    run.mkdir()
    (run / CONFIG).write_text(json.dumps({"config": config.flat()}))
    (run / RESULT).write_text("{}")
    with held(run), pytest.raises(RunError, match="another run is at work"):
        deploy.deploy(config, "partners", print)
    assert (run / RESULT).exists()


@pytest.mark.parametrize(
    ("status", "result", "words"),
    [
        ("finished:completed", None, "the ServerApp wrote no result.json"),
        ("finished:completed", {"status": "failed", "cause": "quorum"}, "failed: quorum"),
        ("finished:failed boom", {"status": "completed", "cause": ""}, "Flower says finished:fail"),
        ("finished:completed", {"status": "completed", "cause": ""}, ""),
    ],
)
def test_a_run_completed_only_if_both_say_so(tmp_path, monkeypatch, status, result, words) -> None:
    def run(config, connection, say, take):
        run_dir.mkdir()
        if result:
            (run_dir / RESULT).write_text(json.dumps(result))
        return status

    run_dir = tmp_path / "run"
    monkeypatch.setattr(deploy, "_run", run)
    config = Config.from_flat({"run-dir": str(run_dir), "sites.allow": "*"})
    with pytest.raises(RunError, match=words) if words else nullcontext():
        deploy.deploy(config, "partners", print)


def test_a_run_that_was_lost_with_its_superlink_is_taken_up_again(tmp_path, monkeypatch) -> None:
    resumed, lines = [], []

    def run(config, connection, say, take):
        resumed.append(config.resume)
        tmp_path.mkdir(exist_ok=True)
        (run_dir / CONFIG).parent.mkdir(exist_ok=True)
        (run_dir / CONFIG).write_text("{}")
        if len(resumed) < 3:
            return "finished:failed"
        (run_dir / RESULT).write_text(json.dumps({"status": "completed", "cause": ""}))
        return "finished:completed"

    run_dir = tmp_path / "run"
    monkeypatch.setattr(deploy, "_run", run)
    config = Config.from_flat({"run-dir": str(run_dir), "sites.allow": "*"})
    deploy.deploy(config, "partners", lines.append)
    assert resumed == [False, True, True]
    assert "the ServerApp ended without a result" in lines[0]
    (run_dir / RESULT).unlink()
    assert not deploy._lost(run_dir, "finished:stopped by the user")
