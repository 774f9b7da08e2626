"""What a user should know of a task's data before a number rests on them; none of it is refused."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cold_flower.data.labels import DECIMAL, NUMBERS
from cold_flower.data.published import absent_labels
from cold_flower.data.rows import Rows, TaskRows
from cold_flower.data.task import Task

if TYPE_CHECKING:  # it imports torch
    from cold_flower.data.encode import Encoded

MUCH = 0.1  # of tokens unknown, or of texts cut: a user should know
FEW = 50  # test rows: with fewer, chance moves a score by seven points and more


def remarks(task: Task, rows: TaskRows) -> Iterator[str]:
    """Say what is odd: rows without label or text, classes that are none, rows met twice."""
    splits = {"train": rows.train, "validation": rows.validation, "test": rows.test}
    there = {split: part for split, part in splits.items() if part is not None}
    for split, count in rows.without_label.items():
        if count:
            yield f"split {split}: {count:,} rows without label are left out"
    for split, part in there.items():
        blank = sum(not "".join(sides).strip() for sides in part.texts)
        if blank:
            yield f"split {split}: {blank:,} of {len(part):,} rows have no text"
        yield from _one_sided(task, part, split)
    if task.kind == "classification":
        yield from _alike(rows.labels)
        yield from _classes(task, rows)
        for split in there.keys() - {"train"}:
            yield from _untrained(rows, there[split], split)
    elif rows.validation is not None and len(set(rows.validation.labels)) == 1:
        number = rows.validation.labels[0]
        yield f"split validation: every row is {number:g}: no weights do better on it than others"
    if len(rows.test) < FEW:
        yield f"split test: {len(rows.test)} rows, fewer than {FEW}: scores move much by chance"
    for split in ("validation", "test"):
        if split in there:
            yield from _met(rows.train, there[split], split)
    if rows.validation is None:
        yield from _repeated(rows.train)


def _one_sided(task: Task, part: Rows, split: str) -> Iterator[str]:
    for side, name in enumerate(task.text):
        alone = sum(
            not sides[side].strip() and bool("".join(sides).strip()) for sides in part.texts
        )
        if alone:
            yield f"split {split}: {alone:,} of {len(part):,} rows have no text in {name!r} alone"


def _alike(labels: tuple[str, ...]) -> Iterator[str]:
    by_form: dict[str, list[str]] = {}
    for name in labels:
        by_form.setdefault(" ".join(name.casefold().split()), []).append(name)
    for names in by_form.values():
        if len(names) > 1:
            yield f"classes {names} differ by case or blanks alone: are they one?"


def _classes(task: Task, rows: TaskRows) -> Iterator[str]:
    """Say where the classes of a label column may be something else, or too rare to learn."""
    times = Counter(rows.labels[int(label)] for label in rows.train.labels)
    once = [name for name, count in times.items() if count == 1]
    decimal = [name for name in times if DECIMAL.fullmatch(name)]
    if len(decimal) > len(times) / 2:
        yield f"classes {shortened(decimal)} look like numbers; {NUMBERS}"
    elif len(times) > len(rows.train) / 2:
        yield (
            f"{len(times)} classes in {len(rows.train)} training rows: does column {task.label!r} "
            "hold the classes?"
        )
    elif once:
        yield f"classes {shortened(once)} have one training row each: too few to learn"
    absent = [] if task.rows else absent_labels(rows)  # where sizes are stated, it is a fault
    if absent:
        hint = ": integers count from 0" if absent[0] == rows.labels[0] else ""
        yield f"no row of train has the classes {shortened(absent)}{hint}"
    if len(set(rows.test.labels)) == 1:
        name = rows.labels[int(rows.test.labels[0])]
        yield f"split test: every row is {name!r}: its score says nothing of the other classes"


def shortened(names: Sequence[str], most: int = 5) -> str:
    """List names, the first few of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{list(names[:most])}{more}"


def reading(train: "Encoded") -> Iterator[str]:
    """Say what of the training texts the base model does not get to see."""
    if train.unknown > MUCH:
        yield f"{train.unknown:.0%} of the tokens are unknown to the tokenizer"
    if train.cut > MUCH:
        yield f"{train.cut:.0%} of the texts are longer than a run reads, and cut"


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


def _repeated(train: Rows) -> Iterator[str]:
    count = sum(times for times in Counter(train.texts).values() if times > 1)
    if count:
        share = count / len(train)
        yield (
            f"split train: {count:,} of {len(train):,} rows ({share:.1%}) stand there more than "
            "once, and dev is carved out of it: finetunings choose their weights on texts that "
            "they train on"
        )
