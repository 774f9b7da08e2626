"""What the benchmarks write down."""

import json
from functools import partial

from benchmarks import results
from benchmarks.finetune import multiplied
from benchmarks.work import Work
from cold_flower.models.base import load_base
from cold_flower.models.classifier import classifier
from cold_flower.models.starting import starting_model
from tests.test_encode import some


def test_a_comparison_is_kept_and_shown(tmp_path, monkeypatch) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(results, "PAGE", page)
    results.keep("work", 50.0, "others", 25.0, "examples/s")
    results.keep("fuse", 9.0, "others", 3.0, "s", note="cold")
    results.keep("fuse", 2.0, "others", 3.0, "s")  # once more on the same day: counts instead
    (file,) = (tmp_path / "results").iterdir()
    assert [(row["what"], row["ours"]) for row in json.loads(file.read_text())] == [
        ("work", 50.0),
        ("fuse", 2.0),
    ]
    said = page.read_text()
    assert said.startswith("before\n") and said.endswith(f"{results.END}\nafter\n")
    assert "old" not in said
    assert "| work | 50 examples/s | others: 25 | 2 |" in said  # more is better
    assert "| fuse | 2 s | others: 3 | 1.5 |" in said  # less is better


def test_the_newest_figure_counts(tmp_path, monkeypatch) -> None:
    row = {"what": "w", "peer": "p", "theirs": 2.0, "unit": "s", "note": "", "command": "c",
           "machine": "m", "versions": {"torch": "2"}}  # fmt: skip
    for day, ours in (("2026-01-01", 4.0), ("2026-01-02", 1.0)):
        (tmp_path / f"{day}.json").write_text(json.dumps([{**row, "ours": ours}]))
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert "| w | 1 s | p: 2 | 2 |  | 2026-01-02 |" in results.table()
    assert "4 s" not in results.table()


def test_commands_stand_under_their_versions_and_are_wrapped() -> None:
    rows = [
        {"command": "python -m one", "versions": {"torch": "1"}},
        {"command": "python -m two " + "--tasks mrpc " * 10, "versions": {"torch": "2"}},
        {"command": "python -m one", "versions": {"torch": "2"}},  # again, later
    ]
    lines = results._commands(rows)
    assert lines[:3] == ["With torch 2:", "", "- `python -m one`"]
    assert not [line for line in lines if "torch 1" in line or len(line) > results.WIDTH]
    assert " ".join(line.strip() for line in lines[3:-1]).count("--tasks mrpc") == 10


def test_the_page_shows_what_is_kept() -> None:
    said = results.PAGE.read_text().partition(results.BEGIN)[2].partition(results.END)[0]
    assert said.strip() == results.table().strip()


def test_the_products_of_a_finetuning_by_hand(folders, tiny) -> None:
    hidden, wide, tokens, classes = 16, 32, 10.0, 3
    base = load_base(str(folders("roberta", "RobertaModel")))
    model = partial(
        classifier, base, starting_model(base, 0)[1], labels="abc", kind="classification", seed=0
    )
    work = Work(model, some(tiny, 3), None)
    layer, head = 4 * hidden**2 + 2 * hidden * wide, hidden**2 + classes * hidden
    whole = 6 * (2 * layer * tokens + head)
    assert multiplied(model(plain=True), work, tokens) == whole
    one = 6 * 2 * (hidden**2 + hidden * wide)  # query, feed-forward and what mixes the heads
    spared = (tokens - 1) * one + tokens * 6 * 2 * hidden**2
    assert multiplied(model(), work, tokens) == whole - spared
