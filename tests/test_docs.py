"""The pages: every command line parses; every key, experiment, link and file exists."""

import importlib.util
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import flwr.cli.app
import pytest
import typer

from cold_flower.commands import cli, offline
from cold_flower.config import Config, describe
from cold_flower.data.suite import suite_names
from cold_flower.reporting import catalogue
from cold_flower.runtime import experiments, sweep
from cold_flower.toml import flatten
from strategies.fusion import load
from tests import acceptance

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
    assert not experiment or experiment.endswith(".toml") or experiment in catalogue.names()
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
    assert all(
        f"(docs/{page.name})" in text
        for page in DOCS.iterdir()
        if page.is_file() and page.suffix not in (".py", ".svg")
    )


def test_every_shipped_experiment_is_on_its_page() -> None:
    page = DOCS / "experiments.md"
    named = {word for span in spans(page) for word in span.split()}
    named |= {words[1] for words in shell_commands(page, "cold-flower") if len(words) > 1}
    for name in catalogue.names():
        assert {name, name.removesuffix("_small")} & named, name


@pytest.mark.parametrize("name", ["architecture.md", "decisions.md"])
def test_every_file_that_the_map_names_exists(name) -> None:
    packages = (ROOT / "cold_flower", ROOT / "strategies")
    folders = {ROOT, *(path.parent for package in packages for path in package.rglob("*.py"))}
    for span in spans(DOCS / name):
        if re.fullmatch(r"[\w/]+\.(py|toml)|[\w/]+/", span):
            assert any((folder / span).exists() for folder in folders), span


def test_the_block_of_plain_flower_is_a_script() -> None:
    section = (DOCS / "runs.md").read_text().partition("## Plain `flwr run`")[2]
    script = "\n".join(re.findall(r"^    (.*)$", section, re.M))
    assert "flwr run $APP --stream" in script
    subprocess.run(["bash", "-n", "-c", script], check=True)
