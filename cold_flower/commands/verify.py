"""``suites --verify``: are the data what the suite says? Each task is read as a run reads it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from cold_flower.config import Config
from cold_flower.data import published
from cold_flower.data.remarks import reading, remarks
from cold_flower.data.rows import Rows, read_task
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
    unknown: str = "-"
    """Share of train's tokens that the base model's tokenizer does not know."""
    cut: str = "-"
    """Share of train's texts that are longer than a run reads."""


def examine(task: Task, read: Callable[[Rows], Any] | None = None) -> Finding:
    """Read a task and compare it with its entry; one that cannot be read is a finding, too.

    Args:
        task: the entry.
        read: tokenises rows as a run does; None leaves that out.
    """
    try:
        rows = read_task(task)
        said = list(remarks(task, rows))
        shares = {}
        if read:
            train = read(rows.train)
            shares = {"unknown": f"{train.unknown:.1%}", "cut": f"{train.cut:.1%}"}
            said += reading(train)
    except (TaskError, OSError) as error:
        cause = str(error).removeprefix(f"{task.where}: ").removeprefix(f"{task.where}, ")
        return Finding(task, (cause,))
    except Exception as error:  # of a library, for one task; the others are read all the same
        return Finding(task, (f"{type(error).__name__}: {error}",))
    return Finding(
        task,
        tuple(published.differences(task, rows)),
        tuple(said),
        train=str(rows.sizes["train"]),
        test=str(rows.sizes.get("test", "of train")),
        tested=str(len(rows.test)),
        labels=str(len(rows.labels) - len(published.absent_labels(rows))),
        unlabelled=str(sum(rows.without_label.values())),
        **shares,
    )


def table(findings: Sequence[Finding], title: str, *, read: bool) -> Table:
    """Draw a line per task: sizes and labels as found, and as the suite states them.

    Args:
        findings: one of each task.
        title: of the table.
        read: whether a tokenizer has read the texts.
    """
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    drawn.add_column("task", no_wrap=True)
    drawn.add_column("source", overflow="ellipsis")  # is cut first on a narrow terminal
    shares = ("unknown", "cut") if read else ()
    for name in ("train", "test", "tested on", "labels", "no label", *shares):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("result", no_wrap=True)
    for finding in findings:
        task = finding.task
        source = ":".join(filter(None, (task.source, task.path, task.subset)))
        verdict = "FAILED" if finding.faults else "ok"
        shown = [getattr(finding, share) for share in shares]
        drawn.add_row(task.name, source, *_cells(finding), *shown, verdict)
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


def _reader(suite: Suite, base_model: str) -> Callable[[Rows], Any]:
    from cold_flower.data.encode import encode  # torch and transformers: seconds, where wanted
    from cold_flower.models.base import load_base

    length = Config.from_flat(dict(suite.recipe)).finetune.max_length
    tokenizer = load_base(base_model).tokenizer
    return lambda rows: encode(tokenizer, rows.texts, rows.labels, max_length=length)


def report(suite: Suite, base_model: str = "") -> bool:
    """Read every task of a suite, print the table; return whether all are as they should be.

    Args:
        suite: whose tasks are read.
        base_model: whose tokenizer reads the texts; none, if empty.

    Raises:
        ModelError: no such base model.
    """
    out, findings = console(), []
    read = _reader(suite, base_model) if base_model else None
    with out.status("") as status:  # nothing where there is no terminal
        for number, task in enumerate(suite.tasks.values(), 1):
            status.update(f"{number} of {len(suite.tasks)}: {task.name}")
            findings.append(examine(task, read))
    if not out.is_terminal:
        out.width = max(out.width, WIDTH)
    title = f"suite {suite.name}: found / stated"
    out.print(table(findings, title, read=bool(base_model)))
    for finding in findings:
        for said in (*finding.faults, *(f"note: {remark}" for remark in finding.remarks)):
            out.print(f"{finding.task.name}: {said}", markup=False, highlight=False)
    good = sum(not finding.faults for finding in findings)
    unstated = sum(not (finding.faults or finding.task.rows) for finding in findings)
    tail = f" ({unstated} of them state no published size)" if unstated else ""
    out.print(f"{good} of {len(findings)} tasks are as the suite says{tail}", highlight=False)
    return good == len(findings)
