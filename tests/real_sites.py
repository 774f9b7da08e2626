"""Three sites, each with data of its own: real ones (COLD_FLOWER_REAL), or the demo's."""

import csv
import json
import os
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet

from cold_flower.data import demo
from tests.federation import Federation, Place, block

DATA = {  # site: dataset, file format, own column names
    "clinic-a": ("rotten_tomatoes", "parquet", "review", "stars"),
    "clinic-b": ("trec_coarse", "jsonl", "question", "topic"),
    "clinic-c": ("tweet_irony", "csv", "message", "tone"),
}
SMALL = {"clinic-a": "travel", "clinic-b": "kitchen", "clinic-c": "music"}
LIMITS = {"max-examples": 128, "max-seconds": 300, "threads": 1, "micro-batch-size": 16}
RECIPE = """
base-model = "{model}"
iterations = {iterations}
contributors-per-iteration = 0
sites.allow = "clinic-a,clinic-b,clinic-c"
sites.minimum = {minimum}
quorum = 2
wait.nodes = 400
wait.replies = 900
evaluate.protocols = "frozen"
evaluate.max-test-examples = 100
evaluate.every = 9
finetune.max-epochs = 1
finetune.batch-size = 32
finetune.max-length = 64
probe.epochs = 10
"""


def real() -> Path:
    """Return the folder of real data and models."""
    return Path(os.environ["COLD_FLOWER_REAL"])


def write_data(folder: Path, name: str, small: bool) -> None:
    """Write a dataset as a site would have it."""
    dataset, kind, text, label = DATA[name]
    folder.mkdir()
    for split in ("train", "test"):
        if small:
            columns = demo.columns(SMALL[name], split, 0)
            pairs = list(zip(columns["text"], columns["label"], strict=True))
        else:
            table = pyarrow.parquet.read_table(real() / "data" / dataset / f"{split}.parquet")
            pairs = [(r["text"], r["label"]) for r in table.to_pylist()]
        rows = [{text: given, label: f"class {known}"} for given, known in pairs]
        path = folder / f"{split}.{kind}"
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, [text, label])
                writer.writeheader()
                writer.writerows(rows)


def settle(federation: Federation, name: str, port: int, small: bool = False) -> Place:
    """Make a site with its data, model and limits; small: the demo's."""
    site = federation.site(name, port=port)
    write_data(site.folder / "data", name, small)
    if not small:
        (site.folder / "model").symlink_to(real() / "models" / "minilm")
    site.run("site-init")
    path = site.folder / "site.toml"
    _, _, text, label = DATA[name]
    made = path.read_text().replace('labels = ["bad", "good"]\n', "")
    made = made.replace('text = ["review"]', f'text = ["{text}"]')
    made = made.replace('label = "stars"', f'label = "{label}"')
    if small:
        made = made.replace('base-model = "model"', 'base-model = "demo"')
    for key, value in LIMITS.items():
        made = made.replace(f"{key} = 0 ", f"{key} = {value} ")
    if name == "clinic-b" and shutil.which("accelerate", path=site.env["PATH"]):
        made = made.replace('trainer = ""', 'trainer = "my_site:finetune"')
        (site.folder / "my_site.py").write_text(block("file: my_site.py"))
    path.write_text(made)
    return site
