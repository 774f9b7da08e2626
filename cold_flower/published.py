"""What an entry says of its data as published, held against what was read.

A suite that repeats a paper states sizes and label sets; a copy that differs is another
dataset, and its scores are no comparison. The checks are pure: they return what is wrong.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cold_flower.errors import TaskError
from cold_flower.seeds import shuffled

if TYPE_CHECKING:
    from cold_flower.entries import Task
    from cold_flower.tasks import Whole


def sample(task: "Task", size: int) -> tuple[list[int], list[int]]:
    """Draw ``test-sample`` of so many rows; return them and the others, in their order.

    The draw knows the task's name and the size alone: every run, whatever its seed, is
    tested on the same rows.

    Raises:
        TaskError: there are not so many, or nothing would be left to train on.
    """
    least = task.test_sample if task.splits["test"] else task.test_sample + 1
    if size < least:
        split = "test" if task.splits["test"] else "train"
        raise TaskError(
            f"{task.where}: test-sample is {task.test_sample}, but split {split} has {size} rows"
        )
    order = shuffled(size, 0, "published test", task.name)
    return sorted(order[: task.test_sample]), sorted(order[task.test_sample :])


def check_names(task: "Task", split: str, named: tuple[str, ...]) -> None:
    """Check the entry's labels against the class names that the data carry.

    An entry may call the classes otherwise (T5 answers in these words), but there are as
    many, and a name that both have stands for the same class.

    Raises:
        TaskError: with both lists.
    """
    if not (task.labels and named):
        return
    ours, theirs = ([name.casefold() for name in names] for names in (task.labels, named))
    moved = [name for name in ours if name in theirs and ours.index(name) != theirs.index(name)]
    if len(ours) != len(theirs) or moved:
        raise TaskError(
            f"{task.where}, split {split}: labels are {list(task.labels)} in the suite, but "
            f"{list(named)} in the data; list them in the order of the data"
        )


def faults(task: "Task", whole: "Whole") -> Iterator[str]:
    """Say how the data differ from what the entry states as published in ``rows``.

    With ``rows`` every class has to occur in train, too: a file without one is not the
    dataset. Without ``rows`` nothing is stated, and a small file may lack a class.
    """
    for split, stated in task.rows.items():
        found = whole.sizes[split]
        if found != stated:
            yield (
                f"split {split} ({task.splits[split]!r}) has {found} rows, but the suite states "
                f"{stated} as published: is it another version of the data? If it is the one you "
                "want, correct rows in a suite file of your own"
            )
    missing = absent(whole) if task.rows else []
    if missing:
        yield (
            f"labels {missing} never occur in split train ({task.splits['train']!r}): the suite "
            f"lists {len(whole.labels)} labels {list(whole.labels)}, the data hold "
            f"{len(whole.labels) - len(missing)} of them"
        )


def absent(whole: "Whole") -> list[str]:
    """Return the class names that no row of train (and of a test held out of it) bears."""
    rows = [whole.train] if "test" in whole.sizes else [whole.train, whole.test]
    seen = {label for part in rows for label in part.labels}
    return [name for i, name in enumerate(whole.labels) if name and i not in seen]
