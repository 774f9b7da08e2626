"""``report.html``: one file with tables and figures, and nothing to load from elsewhere."""

import base64
import html
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cold_flower.config import Config
from cold_flower.data.suite import load_suite
from cold_flower.identity import __version__
from cold_flower.reporting import reference
from cold_flower.reporting.figures import drawn
from cold_flower.reporting.progress import PHASES
from cold_flower.reporting.runs import Condition, RunDirectory, conditions, find
from cold_flower.reporting.statistics import curve, mean_gain, pick, task_gains
from cold_flower.reporting.tables import columns

REPORT, FIGURES = "report.html", "figures"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; vertical-align: top }
th:first-child, td:first-child { text-align: left }
th { border-bottom: 1px solid #888; font-weight: 600 } tr:nth-child(even) td { background: #f6f6f6 }
img { max-width: 100%; display: block; margin: 1rem 0 } p.note { color: #555; font-size: .9rem }
code { font-size: .9em } details { margin: 1rem 0 }
"""
Cell = str | float | int


def write(
    folders: Sequence[Path], out: Path, describe: Callable[[str], str] = lambda experiment: ""
) -> Path:
    """Write report.html and the figures of these runs; return the report's path.

    Args:
        folders: run directories, or folders that hold some (a sweep).
        out: where the report goes; one that is there is replaced.
        describe: says what an experiment is, by its name.

    Raises:
        RunError: a folder without a run, or a run without scores.
    """
    every = conditions(find(folders))
    figures = drawn(every)
    where = out / FIGURES
    where.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            figure.savefig(where / f"{name}.{kind}", dpi=150)
    about = describe(str(every[0].config["experiment"]))
    page = "".join(_page(every, [where / f"{name}.png" for name in figures], about))
    temporary = out / f".{REPORT}"
    temporary.write_text(page)
    temporary.replace(out / REPORT)
    return out / REPORT


def _page(every: Sequence[Condition], figures: Sequence[Path], about: str) -> Iterable[str]:
    config = every[0].config
    name = html.escape(str(config["experiment"]))
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title>"
    yield f"<style>{_STYLE}</style><h1>{name}</h1>"
    if about:
        yield f"<p>{html.escape(about)}</p>"
    seeds = ", ".join(f"{c.label or 'one condition'}: {len(c.runs)} seed(s)" for c in every)
    made = time.strftime("%Y-%m-%d %H:%M")
    yield f"<p class=note>{html.escape(seeds)}. Made {made} by cold-flower {__version__}.</p>"
    yield "<h2>Scores</h2>"
    for condition in every:
        yield from _scores(condition, len(every) > 1)
    yield (
        "<p class=note>Unweighted means over tasks, in points (100 times accuracy). ± SD is over "
        "seeds. ± SEM is over seeds, with one seed over tasks, and with one task its binomial "
        "standard error, that of two scores of sqrt(p(1-p)/n) each.</p>"
    )
    yield "<h2>Figures</h2>"
    for figure in figures:
        yield f"<h3>{html.escape(figure.stem.replace('-', ' '))}</h3>{_image(figure)}"
    yield "<h2>Task by task</h2>"
    for condition in every:
        yield from _tasks(condition)
    yield from _published(every)
    yield "<h2>Cost</h2>"
    yield _table(["run", "hours", *PHASES, "contributions", "sent and received"], _costs(every))
    yield "<h2>Lineage and contributions</h2>"
    for condition in every:
        for run in condition.runs:
            yield from _lineage(run)
    yield "<h2>Configuration</h2>"
    yield f"<details><summary>all keys</summary><pre>{_configuration(config)}</pre></details>"


def _scores(condition: Condition, named: bool) -> Iterable[str]:
    if named:
        yield f"<h3>{html.escape(condition.label)}</h3>"
    rows: list[list[Cell]] = []
    for group, protocol in columns(condition.scores[0]):
        points = curve(condition.scores, group, protocol)
        tasks = len({r["task"] for r in pick(condition.scores[0], group=group, protocol=protocol)})
        gained = mean_gain(condition.scores, group, protocol, condition.last)
        mean, error = (100 * value for value in gained)
        start, last = points.get(0), points[max(points)]
        rows.append(
            [
                f"{protocol}, {group}",
                tasks,
                _points(start) if start else "",
                _points(last),
                f"{mean:+.2f} ± {_number(error, 2)}" if start and condition.last else "",
            ]
        )
    head = ["", "tasks", "start ± SD", f"iteration {condition.last} ± SD", "gain ± SEM"]
    yield _table(head, rows)


def _points(pair: tuple[float, float]) -> str:
    mean, deviation = (100 * value for value in pair)
    return f"{mean:.2f}" + (f" ± {deviation:.2f}" if not math.isnan(deviation) else "")


def _number(value: float, digits: int) -> str:
    return "?" if math.isnan(value) else f"{value:.{digits}f}"


def _tasks(condition: Condition) -> Iterable[str]:
    """Yield the gain of each task under each protocol (Table 1 of the run)."""
    protocols = list(dict.fromkeys(protocol for _, protocol in columns(condition.scores[0])))
    found = {p: task_gains(condition.scores, p, condition.last) for p in protocols}
    first = condition.scores[0]
    rows: list[list[Cell]] = []
    for task in sorted({row["task"] for row in first}):
        about = pick(first, task=task)[0]
        cells: list[Cell] = [task, about["group"], about["n_test"]]
        for protocol in protocols:
            last = [
                row["value"]
                for run in condition.scores
                for row in pick(run, task=task, protocol=protocol, iteration=condition.last)
            ]
            gain = found[protocol].get(task)
            cells.append(f"{100 * sum(last) / len(last):.1f}" if last else "")
            cells.append(f"{100 * gain[0]:+.1f} ± {_number(100 * gain[1], 1)}" if gain else "")
        rows.append(cells)
    head = ["task", "group", "n test"]
    for protocol in protocols:
        head += [protocol, "gain ± SE"]
    if condition.label:
        yield f"<h3>{html.escape(condition.label)}</h3>"
    yield _table(head, rows)


def _published(every: Sequence[Condition]) -> Iterable[str]:
    """Yield the paper's Table 1 beside the run, MUPPET as printed and put back."""
    condition = next((c for c in every if not c.is_baseline), every[0])
    own = task_gains(condition.scores, "finetuned", condition.last)
    names = {t.paper_name: key for key, t in load_suite("paper").tasks.items()}
    printed = {row["dataset"]: row for row in reference.read("table1")}
    repaired = {row["dataset"]: row for row in reference.read("table1_muppet_repaired")}
    rows: list[list[Cell]] = []
    for dataset, row in printed.items():
        gain = own.get(names.get(dataset, ""))
        if gain:
            start = float(row["finetune"])
            other = repaired[dataset]["muppet_repaired"]
            rows.append(
                [
                    dataset,
                    f"{100 * gain[0]:+.1f} ± {_number(100 * gain[1], 1)}",
                    f"{float(row['cold_fusion']) - start:+.2f}",
                    f"{float(row['multitask']) - start:+.2f}",
                    f"{float(row['muppet']) - start:+.2f}",
                    f"{float(other) - start:+.2f}" if other else "",
                ]
            )
    if not rows:
        return
    yield "<h2>Beside the paper's Table 1</h2>"
    head = ["gain over finetuning the start", "this run", "ColD", "multitask"]
    yield _table([*head, "MUPPET printed", "MUPPET put back"], rows)
    yield (
        "<p class=note>The paper finetunes RoBERTa-base for 30 iterations on all of the data. Its "
        "printed MUPPET column stands on the wrong rows: score times test size is no whole number "
        "for 20 of 35 cells, and each of the 20 fits another dataset, where it has been put back "
        "here.</p>"
    )


def _costs(every: Sequence[Condition]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for condition in every:
        for run in condition.runs:
            seconds = run.progress.seconds
            bases = {(r["iteration"], r["task"]) for r in run.scores}
            sent = run.body_bytes * (2 * len(run.contributions) + len(bases))
            rows.append(
                [
                    run.folder.name,
                    f"{sum(seconds.values()) / 3600:.2f}",
                    *(f"{seconds[phase] / 60:.1f} min" for phase in PHASES),
                    len(run.contributions),
                    f"{sent / 1e9:.2f} GB",
                ]
            )
    return rows


def _lineage(run: RunDirectory) -> Iterable[str]:
    yield f"<details><summary>{html.escape(run.folder.name)}</summary>"
    rows: list[list[Cell]] = []
    for manifest in run.manifests:
        given = manifest.get("contributors", [])
        norms = [c["diff-norm"] for c in given if c.get("diff-norm")]
        rows.append(
            [
                manifest["iteration"],
                "" if manifest["parent"] is None else manifest["parent"],
                manifest.get("rule", "the start"),
                ", ".join(f"{c['name']}{_verdict(c)}" for c in given),
                f"{sum(norms) / len(norms):.3g}" if norms else "",
                manifest["sha256"][:12],
            ]
        )
    yield _table(["base", "parent", "rule", "contributors", "mean norm", "sha256"], rows)
    yield "</details>"


def _verdict(contributor: Mapping[str, Any]) -> str:
    return "" if contributor["verdict"] == "accepted" else f" ({contributor['verdict']})"


def _configuration(config: Mapping[str, Any]) -> str:
    defaults = Config().flat()
    lines = [
        f"{key} = {json.dumps(value)}" + ("" if value == defaults.get(key) else "   # not default")
        for key, value in config.items()
    ]
    return html.escape("\n".join(lines))


def _table(head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}" for cell in row) for row in rows
    )
    return f"<table><tr>{top}{body}</table>"


def _image(figure: Path) -> str:
    data = base64.b64encode(figure.read_bytes()).decode()
    return f'<img alt="{html.escape(figure.stem)}" src="data:image/png;base64,{data}">'
