"""What the documents show: run as it stands there, or as far as it can be without a run."""

import importlib.util
import inspect
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import flwr.cli.app
import pytest
import torch
import typer

import cold_flower
from cold_flower.commands import cli, offline
from cold_flower.config import Config, describe, flatten
from cold_flower.data import published
from cold_flower.data.rows import read_split, read_task
from cold_flower.data.suite import load_suite, suite_names
from cold_flower.errors import TaskError
from cold_flower.runtime import experiments, sweep
from strategies.errors import FusionError
from strategies.fusion import Weights, load
from tests import acceptance
from tests.test_fusion import body, contributions, fuse, same_bits

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
WIDTH = 100


def code_lines(page: Path) -> Iterator[str]:
    """Yield the lines of a page's code blocks, but Python's and TOML's; continued ones as one."""
    fence, whole = None, ""
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fence = None if fence is not None else line[3:]
        elif fence in ("", "bash") or (fence is None and line.startswith("    ")):
            whole += line.strip()
            if whole.endswith("\\"):
                whole = whole[:-1]
            else:
                yield whole
                whole = ""


def spans(page: Path) -> list[str]:
    """Return a page's code spans, those that a line break divides, too."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose)]


def shell_commands(page: Path, tool: str) -> Iterator[list[str]]:
    """Yield the words behind each call of a tool: in blocks, and in spans with arguments."""
    drawing = set("─│┌└◄▲▼")
    lines = [line for line in code_lines(page) if not drawing & {*line}] + spans(page)
    for line in (line for line in lines if re.search(rf"(^|\s){tool}\s", line)):
        calls: list[list[str]] = [[]]
        for word in shlex.split(line, comments=True):
            calls += [[]] if word in ("&&", "|", ";") else []
            calls[-1].append(word)
        for call in calls:
            while call and (call[0] in ("&&", "|", ";", "$", "exec") or "=" in call[0]):
                call.pop(0)
            if call[:1] == [tool]:
                yield call[1:]


def parsed(app: typer.Typer, words: list[str]) -> tuple[click.Command, dict[str, Any]]:
    """Parse a command line as the command does; return the command and its parameters.

    A command that is only named, without arguments, has none.
    """
    command, words = typer.main.get_command(app), [*words]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        assert name in command.commands, f"no command {name}: {sorted(command.commands)}"
        command = command.commands[name]
    if not words:
        return command, {}
    try:
        return command, command.make_context(command.name or "", words).params
    except click.exceptions.Exit:  # --version
        return command, {}


def check_values(name: str, given: dict[str, Any]) -> None:
    """Check what the parameters of a command name: experiments, keys, rules, suites."""
    experiment = given.get("experiment") or (given.get("name") if name == "experiments" else "")
    assert not experiment or experiment.endswith(".toml") or experiment in experiments.names()
    Config.from_flat(experiments.parse_settings(given.get("set") or []))
    for key, values in sweep.parse(given.get("sweep_over") or []).items():
        for value in values:
            Config.from_flat(experiments.parse_settings([f"{key}={value}"]))
    if name == "fuse" and given:
        load(given["rule"], **offline.parse_options(given["option"] or []))
    suite = given.get("suite") or (given.get("name") if name == "suites" else "")
    assert not suite or suite.endswith(".toml") or suite in suite_names()


@EVERY_PAGE
def test_every_command_line_parses(page) -> None:
    for words in shell_commands(page, "cold-flower"):
        command, given = parsed(cli.app, words)
        check_values(command.name or "", given)


@EVERY_PAGE
def test_every_call_of_flower_parses(page) -> None:
    for words in shell_commands(page, "flwr"):
        _, given = parsed(flwr.cli.app.app, ["1" if word == "NODE_ID" else word for word in words])
        for pair in given.get("run_config_overrides") or []:
            table = tomllib.loads(re.sub(r"\s+(?=[a-z.-]+=)", "\n", pair.replace('\\"', '"')))
            assert set(flatten(table)) <= describe().keys()


@EVERY_PAGE
def test_every_module_that_is_run_exists_and_takes_its_options(page) -> None:
    for words in shell_commands(page, "python"):
        if words[:1] != ["-m"]:
            continue
        module = importlib.util.find_spec(words[1])
        assert module and module.origin, words
        source = Path(module.origin).read_text()
        assert all(word in source for word in words[2:] if word.startswith("--")), words
        if module.name == acceptance.__name__:
            assert all(f"[{part}]" in str(acceptance.__doc__) for part in words[2:]), words
    for span in spans(page):
        if re.fullmatch(r"benchmarks\.\w+", span):
            assert importlib.util.find_spec(span), span


@EVERY_PAGE
def test_every_target_of_make_exists(page) -> None:
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    for words in shell_commands(page, "make"):
        assert words[0] in targets.split()


@EVERY_PAGE
def test_every_key_that_is_named_exists(page) -> None:
    groups = "|".join({key.partition(".")[0] for key in describe() if "." in key})
    named = re.findall(rf"`({'(?:' + groups + ')'}\.(?!py|jsonl)[a-z-]+)", page.read_text())
    given = re.findall(r"--(?:set|sweep) ['\"]?([a-z-]+(?:\.[a-z-]+)?)=", page.read_text())
    assert {*named, *given} <= describe().keys()


@EVERY_PAGE
def test_every_link_leads_somewhere(page) -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def anchors(page: Path) -> set[str]:
    """Return a page's headings as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@EVERY_PAGE
def test_lines_are_short(page) -> None:
    text = page.read_text()
    if page.name == "deployment.md":  # a unit's command is one line
        text = re.sub(r"```ini\n.*?```", "", text, flags=re.S)
    if page.name == "results.md":  # the benchmarks' tables
        text = text.partition("<!-- written by")[0]
    assert not [line for line in text.splitlines() if len(line) > WIDTH]


def test_the_readme_is_short_and_knows_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 140
    assert all(f"(docs/{page.name})" in text for page in DOCS.iterdir())


def test_every_shipped_experiment_is_on_its_page() -> None:
    page = DOCS / "experiments.md"
    named = {word for span in spans(page) for word in span.split()}
    named |= {words[1] for words in shell_commands(page, "cold-flower") if len(words) > 1}
    for name in experiments.names():
        assert {name, name.removesuffix("_small")} & named, name


@pytest.mark.parametrize("name", ["architecture.md", "decisions.md"])
def test_every_file_that_the_map_names_exists(name) -> None:
    packages = (ROOT / "cold_flower", ROOT / "strategies")
    folders = {ROOT, *(path.parent for package in packages for path in package.rglob("*.py"))}
    for span in spans(DOCS / name):
        if re.fullmatch(r"[\w/]+\.(py|toml)|[\w/]+/", span):
            assert any((folder / span).exists() for folder in folders), span


def blocks(page: Path, language: str) -> list[str]:
    """Return a page's code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def test_the_suites_that_are_shown_load(tmp_path) -> None:
    whole, recipe = blocks(DOCS / "suites.md", "toml")
    (short,) = blocks(ROOT / "README.md", "toml")
    for text, tasks in ((recipe + whole, {"reviews", "sst2"}), (short, {"reviews"})):
        path = tmp_path / "suite.toml"
        path.write_text(text)
        assert load_suite(str(path)).tasks.keys() == tasks
    Config.from_flat(flatten(tomllib.loads(recipe)["recipe"]))


def test_the_experiment_that_is_shown_is_one() -> None:
    (shown,) = blocks(DOCS / "experiments.md", "toml")
    table = flatten(tomllib.loads(shown))
    assert Config.from_flat(table).unseen == "reviews"


def test_the_readme_calls_the_api_as_it_is(monkeypatch) -> None:
    (shown,) = blocks(ROOT / "README.md", "python")
    signature, calls = inspect.signature(cold_flower.simulate), []

    def simulate(*args: Any, **options: Any) -> None:
        calls.append(signature.bind(*args, **options).arguments)

    monkeypatch.setattr(cold_flower, "simulate", simulate, raising=False)
    exec(shown, {})
    assert calls[0]["experiment"] in experiments.names()
    Config.from_flat(calls[0]["settings"])


def test_the_block_of_plain_flower_is_a_script() -> None:
    section = (DOCS / "runs.md").read_text().partition("## Plain `flwr run`")[2]
    script = "\n".join(re.findall(r"^    (.*)$", section, re.M))
    assert "flwr run $APP --stream" in script
    subprocess.run(["bash", "-n", "-c", script], check=True)


@pytest.fixture
def rule(tmp_path, monkeypatch) -> str:
    """Write the rule of docs/fusion-rules.md as a module; return how a user names it."""
    text = (ROOT / "docs" / "fusion-rules.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(shown.strip().splitlines()) <= 15
    (tmp_path / "rule_of_the_page.py").write_text(shown)
    monkeypatch.syspath_prepend(tmp_path)
    return "rule_of_the_page:softest"


def test_the_rule_of_the_page_keeps_the_promises(rule) -> None:
    base = Weights(body(0))
    fused = fuse(rule, base, contributions(5))
    assert {k: (t.dtype, t.shape) for k, t in fused.items()} == {
        k: (t.dtype, t.shape) for k, t in body(0).items()
    }
    assert not torch.equal(fused["matrix"], body(0)["matrix"])
    equal = [Weights(body(0), name=f"c{i}") for i in range(3)]
    assert same_bits(fuse(rule, base, equal), body(0))
    assert same_bits(fuse(rule, base, contributions(5)[::-1]), fused)


def test_the_rule_of_the_page_takes_its_option(rule) -> None:
    base, given = Weights(body(0)), contributions(3)
    mean = sum(w.get("matrix") for w in given) / 3
    fused = dict(load(rule, strength=0.0)(base, given))
    assert torch.allclose(fused["matrix"], mean, atol=1e-5)
    with pytest.raises(FusionError, match="strength of fusion rule .* is a float"):
        load(rule, strength="much")


def test_copies_made_by_hand(tmp_path, monkeypatch) -> None:
    """The snippets of docs/datasets.md, on files of the originals' form."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "datasets.md").read_text()
    saving, *snippets = re.findall(r"```python\n(.*?)```", page, re.S)
    assert "load_dataset" in saving  # needs the hub
    emotions = (
        'ID|Field1|SIT|STATE|\n1|joy|When we met and \u00e1 sang.|1|\n2|guilt|"No" said I.|1|\n'
    )
    (tmp_path / "isear.csv").write_text(emotions, "latin-1")
    (tmp_path / "Sentences_50Agree.txt").write_text("Mail me@home , he said .@neutral\n", "latin-1")
    for name in ("train_5500.label", "TREC_10.label"):
        (tmp_path / name).write_text("DESC:manner How did serfdom develop ?\n", "latin-1")
    for snippet in snippets:
        exec(snippet, {})

    (shown,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    (tmp_path / "mine.toml").write_text(shown)
    mine = load_suite(str(tmp_path / "mine.toml")).tasks["isear"]
    with pytest.raises(TaskError, match="test-sample is 1534, but split train has 2 rows"):
        read_task(mine)
    whole = read_task(replace(mine, test_sample=1))
    assert {*whole.train.texts, *whole.test.texts} == {
        ("When we met and sang.",),
        ('"No" said I.',),
    }
    assert "has 2 rows, but the suite states 7666" in next(published.differences(mine, whole))

    paper = load_suite("paper").tasks
    for name, folder, split, texts, label in (
        ("financial_phrasebank", "phrasebank", "train", "Mail me@home , he said .", "neutral"),
        ("trec_coarse", "trec", "train", "How did serfdom develop ?", "DESC"),
        ("trec_fine", "trec", "test", "How did serfdom develop ?", "DESC:manner"),
    ):
        splits = {"train": "train", "test": "test"}
        entry = replace(paper[name], source="files", path=str(tmp_path / folder), splits=splits)
        rows, labels = read_split(entry, split)
        assert (rows.texts, labels[rows.labels[0]]) == ([(texts,)], label)
