"""``report.html``: one file with tables and figures, of one run or of many."""

import html
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cold_flower.config import Config
from cold_flower.data.suite import load_suite
from cold_flower.errors import RunError, TaskError
from cold_flower.identity import __version__
from cold_flower.reporting import markup, reference, trained
from cold_flower.reporting.about import what_was_run
from cold_flower.reporting.conditions import Condition, conditions
from cold_flower.reporting.differences import differences
from cold_flower.reporting.live import REPORT
from cold_flower.reporting.markup import SCRIPT, STYLE, Cell, table
from cold_flower.reporting.pictures import drawings
from cold_flower.reporting.progress import PHASES
from cold_flower.reporting.runs import FIGURES, RunDirectory, find
from cold_flower.reporting.statistics import curve, mean_and_sem, mean_gain, pick, task_gains
from cold_flower.reporting.tables import columns, points, step_length
from cold_flower.repository.publish import replace_text

MADE_BY = "by cold-flower"


def write(folders: Sequence[Path], out: Path) -> tuple[Path, list[str]]:
    """Write the report of these runs, and beside it its figures; return its path.

    Args:
        folders: run directories, or folders that hold some (a sweep).
        out: a folder, where report.html and figures/ go; or a file that ends in .html, for the
            page alone, which holds the figures. A report that is there is replaced.

    Returns:
        The report's path, and a line for each run that is left out, with the reason.

    Raises:
        RunError: no run with scores; a path that is not there; it cannot be written.
    """
    runs, without_scores = find(folders)
    compared, twice = conditions(runs)
    left_out = [*without_scores, *twice]
    return write_conditions(compared, out, left_out), left_out


def write_conditions(
    compared: Sequence[Condition], out: Path, left_out: Sequence[str] = ()
) -> Path:
    """Write the report of conditions that are known already: see `write`.

    Raises:
        RunError: it cannot be written.
    """
    alone = out.suffix.lower() == ".html" and not out.is_dir()
    report = out if alone else out / REPORT
    with _writing(report):  # said before the figures are drawn
        report.parent.mkdir(parents=True, exist_ok=True)
    from cold_flower.reporting.figures import KINDS, all_figures, drawn, replace  # matplotlib

    kinds = ("svg",) if alone else KINDS
    images = {name: drawn(figure, kinds) for name, figure in all_figures(compared).items()}
    page = "".join(_page(compared, images, left_out))
    with _writing(report):
        if not alone:
            replace(out / FIGURES, _figures_of(report), images)
        replace_text(report, page)
    return report


@contextmanager
def _writing(report: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write the report {report} ({error.strerror}): name another folder, or a file "
            "that ends in .html, with --out (in Python: out=...)"
        ) from error


def _figures_of(report: Path) -> list[str]:
    """Return the names of the figures that an earlier report of ours made; none of other pages."""
    page = report.read_text(errors="replace") if report.exists() else ""
    return markup.figures(page) if MADE_BY in page else []


def _page(
    compared: Sequence[Condition],
    images: Mapping[str, Mapping[str, bytes]],
    left_out: Sequence[str],
) -> Iterable[str]:
    config = compared[0].config
    name = html.escape(str(config["experiment"]))
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title>"
    yield "<meta name=viewport content='width=device-width, initial-scale=1'>"
    yield f"<style>{STYLE}</style><script>{SCRIPT}</script><h1>{name}</h1>"
    yield from what_was_run(compared)
    seeds = ", ".join(f"{c.label or 'one condition'}: {len(c.runs)} seed(s)" for c in compared)
    date = time.strftime("%Y-%m-%d %H:%M")
    yield f"<p class=note>{html.escape(seeds)}. Made {date} {MADE_BY} {__version__}.</p>"
    yield from (f"<p class=warning>left out: {html.escape(line)}</p>" for line in left_out)
    yield from _findings(compared)
    yield "<h2>Scores</h2>"
    for condition in compared:
        yield from _scores(condition, with_label=len(compared) > 1)
    yield (
        "<p class=note>Unweighted means over tasks, in points (100 times accuracy). ± SD is over "
        "seeds. ± SEM is over seeds, with one seed over tasks, and with one task its binomial "
        "standard error, that of two scores of sqrt(p(1-p)/n) each.</p>"
    )
    yield from differences(compared)
    runs = [run for condition in compared for run in condition.runs]
    if len(runs) == 1:
        yield f"<h2>The run in pictures</h2>{drawings(runs[0], runs[0].progress)}"
    yield "<h2>Figures</h2>"
    for name, files in images.items():
        yield f"<h3>{html.escape(name.replace('-', ' '))}</h3>{markup.figure(name, files['svg'])}"
    yield "<h2>Task by task</h2>"
    for condition in compared:
        yield from _tasks(condition)
    yield from _read(run.progress.read for run in runs)
    if told := [part for condition in compared for part in _trained(condition)]:
        yield from ("<h2>Did it train?</h2>", *told)
    yield from _paper_table(compared)
    yield "<h2>Cost</h2>"
    head = ["run", "hours", *PHASES, "contributions", "sent and received"]
    yield table(head, [_cost(run) for run in runs])
    yield "<h2>Lineage and contributions</h2>"
    for run in runs:
        yield from _lineage(run, drawn=len(runs) == 1)
    yield "<h2>Configuration</h2>"
    yield f"<details><summary>all keys</summary><pre>{_configuration(config)}</pre></details>"


def _findings(compared: Sequence[Condition]) -> Iterable[str]:
    """Yield what shows that a recipe trains too little: above the scores, which rest on it."""
    for condition in compared:
        for run in condition.runs:
            where = f"{run.folder.name}: " if len(compared) > 1 or len(condition.runs) > 1 else ""
            for line in run.findings:
                yield f"<p class=warning>{html.escape(where + line)}.</p>"


def _trained(condition: Condition) -> Iterable[str]:
    """Yield each contributor's last finetuning, and those that scored the start, of one seed."""
    run, label = condition.runs[0], f"{condition.label}: " if condition.label else ""
    head = ["", "dev before", "dev best", "largest class", "ended by", ""]
    for one in trained.finetunings(run.contributions, run.scores):
        rows: list[list[Cell]] = []
        for name, row in one.rows.items():
            marks = [
                *(["no better than its largest class"] if name in one.no_better else []),
                *(["still improving"] if name in one.improving else []),
            ]
            dev = [points(row[f"dev_{k}"]) for k in ("start", "accuracy", "majority")]
            rows.append([name, *dev, row["stopped"], ", ".join(marks)])
        yield f"<h3>{html.escape(label + one.what)}</h3>{table(head, rows)}"


def _read(runs: Iterable[Mapping[str, Mapping[str, float]]]) -> Iterable[str]:
    """Yield what the base model does not get to see of each contributor's texts."""
    shares = {name: shares for run in runs for name, shares in run.items()}
    if shares:
        yield "<h2>Texts as the base model reads them</h2>"
        rows = [
            [name, *(f"{s[key]:.1%}" for key in ("unknown", "cut"))]
            for name, s in sorted(shares.items())
        ]
        yield table(["contributor", "tokens unknown", "texts cut"], rows)


def _scores(condition: Condition, *, with_label: bool) -> Iterable[str]:
    """Yield the mean scores at the start and at the end, a line per protocol and group."""
    if with_label:
        yield f"<h3>{html.escape(condition.label)}</h3>"
    rows: list[list[Cell]] = []
    for group, protocol in columns(condition.rows):
        means = curve(condition.scores, group, protocol)
        tasks = {r["task"] for r in pick(condition.rows, group=group, protocol=protocol)}
        mean, error = mean_gain(condition.scores, group, protocol, condition.last)
        start, last = means.get(0), means.get(condition.last)
        rows.append(
            [
                f"{protocol}, {group}",
                len(tasks),
                points(*start, digits=2) if start else "",
                points(*last, digits=2) if last else "",
                _gain((mean, error), 2) if condition.last else "",
            ]
        )
    head = ["", "tasks", "start ± SD", f"iteration {condition.last} ± SD", "gain ± SEM"]
    yield table(head, rows)


def _tasks(condition: Condition) -> Iterable[str]:
    """Yield the gain of each task under each protocol (Table 1 of the run)."""
    protocols = list(dict.fromkeys(protocol for _, protocol in columns(condition.rows)))
    gains = {p: task_gains(condition.scores, p, condition.last) for p in protocols}
    rows: list[list[Cell]] = []
    for task in sorted({row["task"] for row in condition.rows}):
        first = pick(condition.rows, task=task)[0]
        cells: list[Cell] = [task, first["group"], first["n_test"]]
        for protocol in protocols:
            last = [
                row["value"]
                for scores in condition.scores
                for row in pick(scores, task=task, protocol=protocol, iteration=condition.last)
            ]
            cells.append(points(mean_and_sem(last)[0]))
            cells.append(_gain(gains[protocol][task]) if task in gains[protocol] else "")
        rows.append(cells)
    head = ["task", "group", "n test"]
    for protocol in protocols:
        head += [protocol, "gain ± SE"]
    if condition.label:
        yield f"<h3>{html.escape(condition.label)}</h3>"
    yield table(head, rows)


def _gain(gain_and_error: tuple[float, float], digits: int = 1) -> str:
    """Write a gain and its error in points; blank where it was not measured."""
    return points(*gain_and_error, digits=digits, sign="+")


def _paper_table(compared: Sequence[Condition]) -> Iterable[str]:
    """Yield the paper's Table 1 beside the run: MUPPET as printed, and put on its rows again."""
    condition = next((c for c in compared if not c.is_level), compared[0])
    own = task_gains(condition.scores, "finetuned", condition.last)
    comparable = _comparable(str(condition.config["suite"]))
    paper = load_suite("paper").tasks
    task_of = {task.paper_name: name for name, task in paper.items()}
    repaired = {
        str(row["dataset"]): row["muppet_repaired"]
        for row in reference.read("table1_muppet_repaired")
    }
    rows: list[list[Cell]] = []
    for row in reference.read("table1"):
        dataset, start = str(row["dataset"]), float(row["finetune"])
        task = task_of.get(dataset, "")
        if task not in own:
            continue
        muppet = repaired[dataset]
        rows.append(
            [
                dataset,
                comparable.get(task, paper[task].comparable),
                _gain(own[task]),
                *(f"{float(row[c]) - start:+.2f}" for c in ("cold_fusion", "multitask", "muppet")),
                f"{float(muppet) - start:+.2f}" if muppet else "",
            ]
        )
    if not rows:
        return
    yield "<h2>Beside the paper's Table 1</h2>"
    head = ["gain over finetuning the start", "comparable", "this run", "ColD", "multitask"]
    yield table([*head, "MUPPET printed", "MUPPET put back"], rows)
    printed, text = reference.said()["table"], reference.said()["text"]
    yield (
        "<p class=note>The paper finetunes RoBERTa-base for 30 iterations on all of the data. Its "
        f"text says {text['gain']:+.2f} on average and {text['worst']:+.2f} at worst, its table "
        f"{printed['gain']:+.2f} and {printed['worst']:+.2f}. The printed MUPPET column stands on "
        "the wrong rows: score times test size is no whole number for 20 of 35 cells, and each of "
        "the 20 fits another dataset, where it has been put back here. Comparable: whether the "
        "data are the paper's, as far as that is known (docs/datasets.md).</p>"
    )


def _comparable(suite: str) -> dict[str, str]:
    """Return what the run's own suite says of its tasks, where it is still there."""
    try:
        tasks = load_suite(suite).tasks
    except TaskError:
        return {}
    return {name: task.comparable or "unsaid" for name, task in tasks.items()}


def _cost(run: RunDirectory) -> list[Cell]:
    seconds = run.progress.seconds
    evaluated = {(row["iteration"], row["task"]) for row in run.scores}
    # A contribution is a body there and one back; an evaluation is a body there.
    exchanged = run.body_bytes * (2 * len(run.contributions) + len(evaluated))
    return [
        run.folder.name,
        f"{sum(seconds.values()) / 3600:.2f}",
        *(f"{seconds[phase] / 60:.1f} min" for phase in PHASES),
        len(run.contributions),
        f"{exchanged / 1e9:.2f} GB",
    ]


def _lineage(run: RunDirectory, *, drawn: bool) -> Iterable[str]:
    """Yield a run's bases as a table, and its pictures, unless they are ``drawn`` already."""
    yield f"<details><summary>{html.escape(run.folder.name)}</summary>"
    rows: list[list[Cell]] = []
    for manifest in run.manifests:
        contributors = manifest.get("contributors", [])
        norms = [c["diff-norm"] for c in contributors if c.get("diff-norm")]
        rows.append(
            [
                manifest["iteration"],
                "" if manifest["parent"] is None else manifest["parent"],
                manifest.get("rule", "the start"),
                ", ".join(f"{c['name']}{_verdict(c)}" for c in contributors),
                f"{sum(norms) / len(norms):.3g}" if norms else "",
                f"{manifest['step-norm']:.3g}" if manifest.get("step-norm") else "",
                step_length(manifest.get("length"), manifest.get("own-length")),
                manifest["sha256"][:12],
            ]
        )
    head = ["base", "parent", "rule", "contributors", "norm of one", "step", "length", "sha256"]
    yield table(head, rows)
    yield "" if drawn else drawings(run, run.progress)
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
