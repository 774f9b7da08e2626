"""What the benchmarks write down."""

import json
import time
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


def test_a_figure_is_set_beside_the_last_of_the_same_kind_of_machine(
    tmp_path, monkeypatch, capsys
) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"{results.BEGIN}\n{results.END}\n")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "PAGE", page)
    (tmp_path / "2026-01-01.json").write_text("[]")
    today = time.strftime("%Y-%m-%d")

    def kept(*given, **more) -> str:
        capsys.readouterr()
        results.keep(*given, **more)
        return capsys.readouterr().out

    first = kept("work", [90.0, 100.0, 120.0], "others", 50.0, "examples/s")
    assert first == (
        "  work, against others: 100 examples/s, spread 30; "
        "the first one kept of this kind of machine\n"
    )
    said = kept("work", [74.0, 75.0, 84.0], "others", 50.0, "examples/s")  # 25 less, spread 10
    assert said.endswith(f"{today}: 100, FELL by more than its spread (25.0% worse)\n")
    said = kept("work", [70.0, 72.0, 74.0], "others", 50.0, "examples/s")
    assert said.endswith("75, within its spread (4.0% worse)\n")
    said = kept("work", 36.0, "others", 50.0, "examples/s")
    assert said.startswith("  work, against others: 36 examples/s, one measurement;")
    assert said.endswith("72, 50.0% worse, spread unknown\n")
    assert kept("work", 45.0, "others", 50.0, "examples/s").endswith(
        "36, did not fall (25.0% better)\n"
    )
    kept("fuse", 4.0, "others", 9.0, "s")  # less is better
    assert kept("fuse", [5.0, 5.5, 6.0], "others", 9.0, "s").endswith(
        "4, FELL by more than its spread (37.5% worse)\n"
    )
    kept("memory", 4.0, results.MEASURED, 2.0, "GB")  # an estimate: what was measured counts
    assert "memory: 3 GB, one measurement" in kept("memory", 4.0, results.MEASURED, 3.0, "GB")
    kept("products", 7.0, "", None, "TFLOP/s")
    assert "| products | 7 TFLOP/s | | |  |" in page.read_text()
    monkeypatch.setattr(results.machine, "name", lambda: "another")
    assert "the first one kept" in kept("work", 1.0, "others", 50.0, "examples/s")
    monkeypatch.setattr(results, "versions", lambda: {"torch": "1"})
    assert "1 (other versions), the same" in kept("work", 1.0, "others", 50.0, "examples/s")


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
