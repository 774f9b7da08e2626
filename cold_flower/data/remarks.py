"""What a user should know of a task's data before a number rests on them; none of it is refused."""

from collections.abc import Iterator

from cold_flower.data.rows import Rows, TaskRows
from cold_flower.data.task import Task

MUCH = 0.1  # of tokens unknown, or of texts cut: a user should know


def remarks(task: Task, rows: TaskRows) -> Iterator[str]:
    """Say what is odd: rows without label or text, classes that look alike, rows met twice."""
    splits = {"train": rows.train, "validation": rows.validation, "test": rows.test}
    there = {split: part for split, part in splits.items() if part is not None}
    for split, count in rows.without_label.items():
        if count:
            yield f"split {split}: {count:,} rows without label are left out"
    for split, part in there.items():
        blank = sum(not "".join(sides).strip() for sides in part.texts)
        if blank:
            yield f"split {split}: {blank:,} of {len(part):,} rows have no text"
    if task.kind == "classification":
        yield from _alike(rows.labels)
        for split in there.keys() - {"train"}:
            yield from _untrained(rows, there[split], split)
    for split in ("validation", "test"):
        if split in there:
            yield from _met(rows.train, there[split], split)


def _alike(labels: tuple[str, ...]) -> Iterator[str]:
    by_form: dict[str, list[str]] = {}
    for name in labels:
        by_form.setdefault(" ".join(name.casefold().split()), []).append(name)
    for names in by_form.values():
        if len(names) > 1:
            yield f"classes {names} differ by case or blanks alone: are they one?"


def _untrained(rows: TaskRows, part: Rows, split: str) -> Iterator[str]:
    new = set(part.labels) - set(rows.train.labels)
    if new:
        count = sum(label in new for label in part.labels)
        names = [rows.labels[int(label)] for label in sorted(new)]
        yield f"split {split}: {count:,} of {len(part):,} rows have classes train lacks: {names}"


def _met(train: Rows, part: Rows, split: str) -> Iterator[str]:
    trained = set(train.texts)
    count = sum(texts in trained for texts in part.texts)
    if count:
        share = count / len(part)
        yield f"split {split}: {count:,} of {len(part):,} rows ({share:.1%}) stand in train, too"
