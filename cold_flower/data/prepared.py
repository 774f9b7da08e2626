"""A split as a Parquet file that says where its rows are from.

It holds every row as the source has it, those without label, too, of the columns that the entry
names. What a run leaves out and draws depends on the task's name, on the rows and their order,
which are the same here: so a run on the file is a run on the source.
"""

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cold_flower.data import files, sources
from cold_flower.data.task import PLACE, Task, columns_of
from cold_flower.errors import TaskError, first_line

ORIGIN, CARD = b"cold-flower.origin", b"cold-flower.card"


def source(task: Task) -> str:
    """Name a task's source: ``hub:nyu-mll/glue:sst2``; files by their whole path."""
    path = os.path.abspath(files.beside(task) / task.path) if task.source == "files" else task.path
    return ":".join(filter(None, (task.source, path, task.subset)))


def origin(task: Task, split: str) -> bytes:
    """Say all that a split's rows depend on: where it differs, they may be others.

    Raises:
        TaskError: a file of the source is missing.
    """
    place = {key: getattr(task, key.replace("-", "_")) for key in PLACE}
    columns = sorted({task.label, *(name for text in task.text for name in columns_of(text))})
    where = {"path": source(task), "splits": task.splits[split], "stamp": sources.stamp(task)}
    return json.dumps({**place, **where, "columns": columns}, sort_keys=True).encode()


def table(task: Task, split: str) -> Any:
    """Read a split as a run does; return its texts as text, and its labels as they are.

    Class names that the source itself carries are in the table's schema, as `datasets` keeps them.

    Raises:
        TaskError: the source cannot be read, a text is none, or labels are of several kinds.
    """
    import pyarrow

    columns, names = sources.read(task, task.splits[split])
    where = f"{task.where}, split {split}"
    texts = {
        name: pyarrow.array(sources.as_text(name, values, where), pyarrow.string())
        for name, values in columns.items()
        if name != task.label
    }
    try:
        whole = pyarrow.table({**texts, task.label: columns[task.label]})
    except (pyarrow.ArrowException, OverflowError) as error:
        raise TaskError(
            f"{where}: column {task.label!r} cannot be written as Parquet, where a column is of "
            f"one kind: {first_line(error)}"
        ) from error
    if not names:
        return whole
    import datasets

    features = {name: datasets.Value("string") for name in texts}
    features[task.label] = datasets.ClassLabel(names=list(names))
    return whole.cast(datasets.Features(features).arrow_schema)


def write(file: BinaryIO, whole: Any, origin: bytes, card: Mapping[str, str]) -> None:
    """Write a table as Parquet that says where it is from."""
    import pyarrow.parquet

    said = {ORIGIN: origin, CARD: json.dumps(card)}
    whole = whole.replace_schema_metadata({**(whole.schema.metadata or {}), **said})
    pyarrow.parquet.write_table(whole, file, compression="zstd")


def read_origin(path: Path) -> tuple[bytes, dict[str, str]]:
    """Return a file's origin and card; nothing if it is missing, cut off, or of somebody else."""
    import pyarrow.parquet

    try:
        said = pyarrow.parquet.read_schema(path).metadata or {}
    except (pyarrow.ArrowException, OSError):
        return b"", {}
    return said.get(ORIGIN, b""), json.loads(said.get(CARD, b"{}"))


def read_card(task: Task) -> dict[str, str]:
    """Return today's date, and the licence and revision that the card of a hub dataset states.

    `datasets` does not pass on a card's licence, so the hub is asked.
    """
    said = {"read": datetime.date.today().isoformat(), "licence": "not stated", "revision": ""}
    if task.source != "hub":
        return said
    import huggingface_hub

    try:
        if Path(task.path).is_dir():
            card = Path(task.path) / "README.md"
            data = huggingface_hub.DatasetCard.load(card).data if card.exists() else None
        else:
            about = huggingface_hub.HfApi().dataset_info(task.path)
            data, said["revision"] = about.card_data, about.sha or ""
    except Exception as error:  # of the network, or a card that is no card; the rows are there
        return said | {"licence": f"not known, the card cannot be read ({first_line(error)})"}
    stated = (data and (data.get("license_name") or data.get("license"))) or "not stated"
    return said | {"licence": stated if isinstance(stated, str) else ", ".join(stated)}
