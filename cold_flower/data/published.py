"""Do the data have the sizes and labels that the suite states as published?

A suite that repeats a paper states them. A copy of the data that differs is another dataset, and
its scores cannot be compared with the paper's.
"""

from collections.abc import Iterator

from cold_flower.data.rows import TaskRows
from cold_flower.data.task import Task


def differences(task: Task, rows: TaskRows) -> Iterator[str]:
    """Describe each difference between a task's data and what its ``rows`` table states.

    Where sizes are stated, every label has to occur in train, too: a file that lacks one is not
    the dataset. Where none are stated, nothing is checked: a small file may lack a label.
    """
    for split, stated in task.rows.items():
        size = rows.sizes[split]
        if size != stated:
            yield (
                f"split {split} ({task.splits[split]!r}) has {size} rows, but the suite states "
                f"{stated} as published: is it another version of the data? If it is the one you "
                "want, correct rows in a suite file of your own"
            )
    missing = absent_labels(rows) if task.rows else []
    if missing:
        yield (
            f"labels {missing} never occur in split train ({task.splits['train']!r}): the suite "
            f"lists {len(rows.labels)} labels {list(rows.labels)}, the data hold "
            f"{len(rows.labels) - len(missing)} of them"
        )


def absent_labels(rows: TaskRows) -> list[str]:
    """Return the labels that no row of train has, nor of a test set held out of train."""
    parts = [rows.train] if "test" in rows.sizes else [rows.train, rows.test]
    occurring = {label for part in parts for label in part.labels}
    return [name for i, name in enumerate(rows.labels) if name and i not in occurring]
