"""``report.html``: one file with tables and figures, of one run or of many."""

import html
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cold_flower.config import Config
from cold_flower.errors import RunError
from cold_flower.identity import __version__
from cold_flower.reporting import markup, trained
from cold_flower.reporting.about import what_was_run
from cold_flower.reporting.conditions import Condition, conditions
from cold_flower.reporting.differences import differences
from cold_flower.reporting.live import REPORT
from cold_flower.reporting.markup import SCRIPT, STYLE, Cell, table
from cold_flower.reporting.pictures import drawings
from cold_flower.reporting.progress import PHASES
from cold_flower.reporting.published import paper_table
from cold_flower.reporting.runs import FIGURES, RunDirectory, find
from cold_flower.reporting.scored import scores_table, tasks_table
from cold_flower.reporting.tables import points, step_length
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
    from cold_flower.reporting.figure_files import KINDS, drawn, replace  # matplotlib
    from cold_flower.reporting.figures import all_figures

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
        yield from scores_table(condition, with_label=len(compared) > 1)
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
        yield from tasks_table(condition)
    yield from _read(run.progress.read for run in runs)
    if told := [part for condition in compared for part in _trained(condition)]:
        yield from ("<h2>Did it train?</h2>", *told)
    yield from paper_table(compared)
    yield "<h2>Cost</h2>"
    head = ["run", "hours", *PHASES, "contributions", "sent and received"]
    yield table(head, [_cost(run) for run in runs])
    yield "<h2>Lineage and contributions</h2>"
    for run in runs:
        yield from _lineage(run, drawn=len(runs) == 1)
    yield "<h2>Configuration</h2>"
    yield f"<details><summary>all keys</summary><pre>{_configuration(config)}</pre></details>"


def _findings(compared: Sequence[Condition]) -> Iterable[str]:
    """Yield what makes scores doubtful: a recipe that trains too little, runs made otherwise."""
    for condition in compared:
        if condition.mixed:
            whose = f"{condition.label}: " if condition.label else ""
            line = (
                f"{whose}not all of its runs were made with the same {', '.join(condition.mixed)}"
            )
            yield f"<p class=warning>{html.escape(line)}.</p>"
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


def _cost(run: RunDirectory) -> list[Cell]:
    seconds = run.progress.seconds
    exchanged = f"{run.body_bytes * run.bodies / 1e9:.2f} GB"
    if run.config["transport"] == "shared-dir":
        exchanged = f"{exchanged}, else by reference" if run.bodies else "by reference"
    return [
        run.folder.name,
        f"{sum(seconds.values()) / 3600:.2f}",
        *(f"{seconds[phase] / 60:.1f} min" for phase in PHASES),
        len(run.contributions),
        exchanged,
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
