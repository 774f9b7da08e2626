"""What an entry says of its data as published, held against what was read.

A suite that repeats a paper states sizes and label sets; a copy that differs is another
dataset, and its scores are no comparison.
"""

from collections.abc import Iterator

from cold_flower.data.rows import TaskRows
from cold_flower.data.task import Task


def differences(task: Task, read: TaskRows) -> Iterator[str]:
    """Say how the data differ from what the entry states as published in ``rows``.

    With ``rows`` every class has to occur in train, too: a file without one is not the
    dataset. Without ``rows`` nothing is stated, and a small file may lack a class.
    """
    for split, stated in task.rows.items():
        size = read.sizes[split]
        if size != stated:
            yield (
                f"split {split} ({task.splits[split]!r}) has {size} rows, but the suite states "
                f"{stated} as published: is it another version of the data? If it is the one you "
                "want, correct rows in a suite file of your own"
            )
    missing = absent_labels(read) if task.rows else []
    if missing:
        yield (
            f"labels {missing} never occur in split train ({task.splits['train']!r}): the suite "
            f"lists {len(read.labels)} labels {list(read.labels)}, the data hold "
            f"{len(read.labels) - len(missing)} of them"
        )


def absent_labels(read: TaskRows) -> list[str]:
    """Return the class names that no row of train (and of a test held out of it) bears."""
    rows = [read.train] if "test" in read.sizes else [read.train, read.test]
    seen = {label for part in rows for label in part.labels}
    return [name for i, name in enumerate(read.labels) if name and i not in seen]
