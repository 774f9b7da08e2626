"""``suites --verify``: are the data what the suite says? Each task is read as a run reads it."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from cold_flower.data import published
from cold_flower.data.remarks import remarks
from cold_flower.data.rows import read_task
from cold_flower.data.suite import Suite
from cold_flower.data.task import Task
from cold_flower.errors import TaskError
from cold_flower.reporting.tables import console

WIDTH = 120  # at least, of a table that goes into a file


@dataclass(frozen=True)
class Finding:
    """What reading one task showed: sizes as text, not the rows, which may fill the memory."""

    task: Task
    faults: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    train: str = "-"
    test: str = "-"
    """Rows of the test split as the source has it."""
    tested: str = "-"
    """Test rows that a run uses."""
    labels: str = "-"
    unlabelled: str = "-"
    """Rows without label, of all splits: they are left out."""


def examine(task: Task) -> Finding:
    """Read a task and compare it with its entry; one that cannot be read is a finding, too."""
    try:
        rows = read_task(task)
    except (TaskError, OSError) as error:
        cause = str(error).removeprefix(f"{task.where}: ").removeprefix(f"{task.where}, ")
        return Finding(task, (cause,))
    except Exception as error:  # of a library, for one task; the others are read all the same
        return Finding(task, (f"{type(error).__name__}: {error}",))
    return Finding(
        task,
        tuple(published.differences(task, rows)),
        tuple(remarks(task, rows)),
        train=str(rows.sizes["train"]),
        test=str(rows.sizes.get("test", "of train")),
        tested=str(len(rows.test)),
        labels=str(len(rows.labels) - len(published.absent_labels(rows))),
        unlabelled=str(sum(rows.without_label.values())),
    )


def table(findings: Sequence[Finding], title: str) -> Table:
    """Draw a line per task: sizes and labels as found, and as the suite states them."""
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    drawn.add_column("task", no_wrap=True)
    drawn.add_column("source", overflow="ellipsis")  # is cut first on a narrow terminal
    for name in ("train", "test", "tested on", "labels", "no label"):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("result", no_wrap=True)
    for finding in findings:
        task = finding.task
        source = ":".join(filter(None, (task.source, task.path, task.subset)))
        verdict = "FAILED" if finding.faults else "ok"
        drawn.add_row(task.name, source, *_cells(finding), verdict)
    return drawn


def _cells(finding: Finding) -> list[str]:
    task = finding.task
    labels = f"{finding.labels} / {len(task.labels) or '-'}"
    train = f" / {task.rows['train']}" if "train" in task.rows else ""
    return [
        finding.train + train,
        f"{finding.test} / {task.rows.get('test', '-')}",
        finding.tested,
        "number" if task.kind == "regression" else labels,
        finding.unlabelled,
    ]


def report(suite: Suite) -> bool:
    """Read every task of a suite, print the table; return whether all are as they should be."""
    out, findings = console(), []
    with out.status("") as status:  # nothing where there is no terminal
        for number, task in enumerate(suite.tasks.values(), 1):
            status.update(f"{number} of {len(suite.tasks)}: {task.name}")
            findings.append(examine(task))
    if not out.is_terminal:
        out.width = max(out.width, WIDTH)
    out.print(table(findings, f"suite {suite.name}: found / stated"))
    for finding in findings:
        for said in (*finding.faults, *(f"note: {remark}" for remark in finding.remarks)):
            out.print(f"{finding.task.name}: {said}", markup=False, highlight=False)
    good = sum(not finding.faults for finding in findings)
    unstated = sum(not (finding.faults or finding.task.rows) for finding in findings)
    tail = f" ({unstated} of them state no published size)" if unstated else ""
    out.print(f"{good} of {len(findings)} tasks are as the suite says{tail}", highlight=False)
    return good == len(findings)
