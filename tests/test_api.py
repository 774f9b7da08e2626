"""The Python API, as docs/api.md and the notebook show it."""

import inspect
import json
import math
import re
import subprocess
import sys
import typing
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

import cold_flower
from cold_flower.commands import api
from cold_flower.config import Config
from cold_flower.errors import ColdFlowerError, ConfigError, RunError
from cold_flower.reporting.against import check as check_against
from cold_flower.reporting.run import Run
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import SCORES, Journal
from tests.test_cli import cold_flower as cold_flower_command

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "api.md").read_text()
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def row(iteration: int, task: str, value: float, group: str = "seen", protocol: str = "frozen"):
    return {
        "iteration": iteration, "task": task, "protocol": protocol, "group": group,
        "metric": "accuracy", "value": value, "n_test": 100, "seed": 0, "base": "x",
    }  # fmt: skip


SCORED = [
    row(0, "a", 0.5), row(0, "b", 0.3), row(0, "c", 0.4, "unseen"), row(0, "a", 0.9, protocol="few-shot"),
    row(1, "a", 0.6), row(1, "b", 0.5), row(1, "c", 0.3, "unseen"),
]  # fmt: skip


def make(folder: Path, scores=SCORED, iterations: int = 1) -> Run:
    config = Config.from_flat({"iterations": iterations, "run-dir": str(folder)})
    journal = Journal(folder)
    journal.open(config, {})
    journal.append(SCORES, scores)
    repository, body = Repository(folder), {"w": torch.ones(2)}

    def save(path: Path) -> None:
        from strategies.fusion import Weights, write_safetensors

        write_safetensors(path / "model.safetensors", Weights(body).template(), body.items())

    repository.create(save, body, "", {})
    if iterations:
        from strategies.fusion import Weights

        repository.publish(1, 0, Weights({"w": torch.zeros(2)}), {"rule": "average"})
    return cold_flower.open_run(folder)


def test_gains_are_paired_by_task(tmp_path) -> None:
    run = make(tmp_path / "run")
    gain = run.gains("frozen", group="seen")
    assert gain.by_task == pytest.approx({"a": 0.1, "b": 0.2})
    assert (gain.mean, gain.n) == (pytest.approx(0.15), 2)
    assert gain.sem == pytest.approx(0.05)  # sd 0.0707 / sqrt(2)
    assert str(gain) == "+15.0 ± 5.0 points (2 tasks)"
    assert run.gains("frozen").by_task == pytest.approx({"a": 0.1, "b": 0.2, "c": -0.1})
    alone = run.gains("frozen", group="unseen")
    assert math.isnan(alone.sem) and str(alone) == "-10.0 points (1 task)"


def test_a_gain_that_is_not_there_is_an_error(tmp_path) -> None:
    run = make(tmp_path / "run")
    with pytest.raises(ConfigError, match="unknown protocol 'frozn'. Did you mean 'frozen'"):
        run.gains("frozn")
    with pytest.raises(ConfigError, match="unknown group 'all'"):
        run.gains("frozen", group="all")
    with pytest.raises(RunError, match=r"under few-shot; scored so are the iterations \[0\]"):
        run.gains("few-shot")
    with pytest.raises(RunError, match="no gain of iteration 0 over the start"):
        run.gains("frozen", iteration=0)


def test_a_run_in_python_is_what_lies_on_the_disk(tmp_path, monkeypatch) -> None:
    run = make(tmp_path / "run")
    assert run.scores == SCORED
    assert run.latest == run.base(1) == tmp_path / "run" / "iterations" / "0001"
    assert run.base(0).name == "0000"
    with pytest.raises(RunError, match="no iteration 2 in .*; there: 0, 1"):
        run.base(2)
    (run.base(1) / "model.safetensors").unlink()
    with pytest.raises(RunError, match="iteration 1 has no weights any more"):
        run.base(1)
    frame = run.to_pandas()
    assert list(frame.columns) == list(SCORED[0])
    assert frame[frame.iteration == 1].value.tolist() == [0.6, 0.5, 0.3]
    assert repr(run) == f"<Run demo, 1 of 1 iterations, in {tmp_path / 'run'}>"
    monkeypatch.chdir(tmp_path)
    assert repr(run) == "<Run demo, 1 of 1 iterations, in run>"


def test_a_notebook_shows_the_table_of_the_terminal(tmp_path) -> None:
    page = make(tmp_path / "run")._repr_html_()
    cells = re.findall(r"<t[hd]>([^<]*)", page)
    width = 4
    assert [cells[i : i + width] for i in range(0, len(cells), width)] == [
        ["base", "frozen\n2 seen", "few-shot\n1 seen", "frozen\n1 unseen"],
        ["start", "40.0", "90.0", "40.0"],
        ["1", "55.0", "", "30.0"],
        ["gain", "+15.0", "", "-10.0"],
        ["± SEM", "5.0", "", ""],
    ]


def test_a_model_is_compared_with_the_start_of_a_run(tmp_path) -> None:
    before = make(tmp_path / "run")
    alone = make(tmp_path / "model", [row(0, "a", 0.7), row(0, "b", 0.4), row(0, "z", 0.1)], 0)
    assert [*alone.table().columns][1].header == "frozen\n3 tasks"  # none of them was seen
    compared = Run(alone.folder, alone.config, before)
    assert compared.gains("frozen").by_task == pytest.approx({"a": 0.2, "b": 0.1})
    assert [column.header for column in compared.table().columns] == ["task", "frozen", "gain ± SE"]
    assert "+15.00 ± 5.00" in compared._repr_html_()


def test_what_cannot_be_compared_is_said_before_the_start(tmp_path, monkeypatch, recwarn) -> None:
    def never(*_):
        raise AssertionError("it began")

    monkeypatch.setattr(api, "run", never)
    monkeypatch.chdir(tmp_path)
    travel = [row(0, "travel", 0.5), row(0, "music", 0.5, protocol="few-shot")]
    other = make(tmp_path / "run", [*travel, row(1, "kitchen", 0.9)])
    for settings, protocols, words in (
        ({"tasks": "kitchen,garden"}, "frozen", "no task in common. Its start has scores of music, "
         "travel, this would have of garden, kitchen"),
        ({"tasks": "travel"}, "finetuned,few-shot", "no protocol in common. Its start has scores "
         "of frozen, this would have of finetuned, few-shot"),
        ({"tasks": "travel,music"}, "finetuned", "no protocol in common"),
    ):  # fmt: skip
        with pytest.raises(RunError, match=words):
            cold_flower.evaluate(
                "demo", suite="demo", protocols=protocols, against=other, settings=settings
            )
    with pytest.raises(RunError, match="is this evaluation itself"):
        cold_flower.evaluate("demo", suite="demo", against=other, run_dir=other.folder)
    table = (
        '[tasks.travel]\nsource = "files"\npath = "{}"\ntext = ["text"]\nlabel = "{}"\n'
        'splits = {{ train = "train", test = "test" }}\n'
    )
    for name, path, label in (("a", "x", "y"), ("b", "elsewhere", "y"), ("c", "x", "z")):
        (tmp_path / f"{name}.toml").write_text(table.format(path, label))
    config = {**other.config, "suite": str(tmp_path / "a.toml")}
    of_a = Run(other.folder, config)
    mine = {"suite": str(tmp_path / "c.toml"), "evaluate.protocols": "frozen"}
    with pytest.raises(RunError, match=r"task 'travel' of its suite .*a.toml is another one than"):
        check_against(Config.from_flat(mine), of_a)
    mine |= {"suite": str(tmp_path / "b.toml"), "seed": 3, "few-shot.draws": 9, "probe.epochs": 2}
    mine |= {"finetune.micro-batch-size": 4, "iterations": 7, "fusion.rule": "ties"}
    assert check_against(Config.from_flat(mine), of_a) == [
        f"compared with {other.folder}, but it was of suite {tmp_path / 'a.toml'}, this is of "
        f"{tmp_path / 'b.toml'}",
        f"compared with {other.folder}, but it was made with other settings: seed = 0 instead of "
        "3, probe.epochs = 50 instead of 2",
    ]
    # What no evaluation reads is no doubt, nor are settings of finetuning where nothing finetunes.
    beside = {**other.config, "finetune.proximal-mu": 0.5, "finetune.head": "keep"}
    frozen = {**beside, "finetune.learning-rate": 0.25, "finetune.max-length": 77}
    wanted = {"suite": other.config["suite"], "evaluate.protocols": "frozen"}
    (said,) = check_against(Config.from_flat(wanted), Run(other.folder, frozen))
    assert said.endswith("made with other settings: finetune.max-length = 77 instead of 250")
    kept = json.loads((other.folder / "config.json").read_text())
    (other.folder / "config.json").write_text(json.dumps({**kept, "versions": "of old"}))
    said, _ = check_against(Config.from_flat(wanted), Run(other.folder, frozen))
    assert said.endswith("but it was made with other versions")
    assert not (tmp_path / "runs").exists() and not recwarn.list


def test_a_folder_without_a_run(tmp_path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        cold_flower.open_run(tmp_path)
    with pytest.raises(ColdFlowerError, match="holds no run"):
        cold_flower.evaluate("demo", suite="demo", against=tmp_path)
    with pytest.raises(ColdFlowerError, match="no scores there, nothing to compare with"):
        cold_flower.evaluate("demo", suite="demo", against=make(tmp_path / "run", []))


def test_every_error_is_of_one_kind(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for settings, words in (
        ({"finetune.learning-rat": 1.0}, "Did you mean 'finetune.learning-rate'"),
        ({"fusion.rule": "avrage"}, "Did you mean 'average'"),
        ({"fusion.rule": "ties", "fusion.options": "{density = 2.0}"}, r"a float in \(0, 1\]"),
        ({"tasks": ["travel"]}, "a list is one comma-separated string"),
    ):
        with pytest.raises(ColdFlowerError, match=words):
            cold_flower.simulate("demo", settings)
    with pytest.raises(ColdFlowerError, match="resume continues a run, so it needs its directory"):
        cold_flower.simulate("demo", resume=True)
    with pytest.raises(ColdFlowerError, match="unknown fusion rule 'tis'. Did you mean 'ties'"):
        cold_flower.fuse("tis", base="x", models=["y"], out="z")
    with pytest.raises(ColdFlowerError, match="model nowhere"):
        cold_flower.fuse("ties", base="nowhere", models=["y"], out="z")
    assert list(tmp_path.iterdir()) == []


ONE = {
    "models": (cold_flower.fuse, "a list of folders, got '/path/a'",
               {"rule": "ties", "base": "x", "models": "/path/a", "out": "z"}),
    "statistics": (cold_flower.fuse, "a list of folders, got 'a'",
                   {"rule": "fisher", "base": "x", "models": ["y"], "statistics": "a", "out": "z"}),
    "options": (cold_flower.fuse, "a mapping of names to values, got 'density=1'",
                {"rule": "ties", "base": "x", "models": ["y"], "options": "density=1", "out": "z"}),
    "seeds": (cold_flower.compare, "a list of whole numbers, got 0",
              {"experiment": "demo", "rules": "ties", "seeds": 0}),
    "rules": (cold_flower.compare, "a list of names, got 3", {"experiment": "demo", "rules": 3}),
    "variants": (cold_flower.compare, "a list of mappings, got {'finetune.head': 'keep'}",
                 {"experiment": "demo", "variants": {"finetune.head": "keep"}}),
    "each of variants": (cold_flower.compare, "a mapping of names to values, got 'finetune.head=",
                         {"experiment": "demo", "variants": ["finetune.head=keep"]}),
    "learning_rates": (cold_flower.tune, "a list of numbers, got 0.001",
                       {"suite": "demo", "base_model": "demo", "learning_rates": 0.001}),
    "epochs": (cold_flower.tune, "a list of whole numbers, got '3,10'",
               {"suite": "demo", "base_model": "demo", "epochs": "3,10"}),
    "protocols": (cold_flower.evaluate, "a list of names, got 3",
                  {"model": "demo", "suite": "demo", "protocols": 3}),
    "settings": (cold_flower.simulate, "a mapping of names to values, got ['seed=1']",
                 {"experiment": "demo", "settings": ["seed=1"]}),
}  # fmt: skip


@pytest.mark.parametrize("what", ONE)
def test_one_value_where_several_are_meant_is_said(tmp_path, monkeypatch, what) -> None:
    function, words, given = ONE[what]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(f"{what} is {words}")):
        function(**given)
    assert list(tmp_path.iterdir()) == []


def test_names_may_be_one_text_with_commas(tmp_path, monkeypatch) -> None:
    from cold_flower.runtime import tune

    monkeypatch.chdir(tmp_path)
    took: dict = {}
    monkeypatch.setattr(tune, "tune", lambda config, **given: took.update(given))
    cold_flower.tune(
        suite="demo", base_model="demo", tasks="travel, music", protocols="frozen,finetuned"
    )
    assert took["tasks"] == ["travel", "music"]
    assert took["protocols"] == ["frozen", "finetuned"]
    with pytest.raises(ConfigError, match="for finetuned, which is not asked"):
        cold_flower.tune(suite="demo", base_model="demo", protocols="frozen", epochs=[3])


def test_what_is_exported_is_typed_and_light() -> None:
    for name in cold_flower.__all__:
        assert getattr(cold_flower, name) is not None
    assert dir(cold_flower) == cold_flower.__all__
    for function in (api.simulate, api.evaluate, api.fuse):
        assert "return" in typing.get_type_hints(function)
        assert all(
            parameter.annotation is not inspect.Parameter.empty
            for parameter in inspect.signature(function).parameters.values()
        )
    with pytest.raises(AttributeError, match="has no attribute 'simulat'"):
        _ = cold_flower.simulat
    code = (
        "import sys, cold_flower; assert 'torch' not in sys.modules; print(cold_flower.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.1.0"


def test_a_python_without_our_packages_is_named() -> None:
    code = "import sys, cold_flower; sys.modules['torch'] = None; cold_flower.simulate"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"cold-flower is not installed for {sys.executable}" in done.stderr
    assert ".venv/bin/python" in done.stderr


def shorter(code: str) -> str:
    """Have the examples train for less long: they are to run, not to be good."""
    frozen = '"evaluate.protocols": "frozen",'
    assert frozen in code
    code = code.replace(frozen, f'{frozen} "finetune.max-epochs": 1, "probe.epochs": 2,')
    return code.replace('"seed": 1}', '"seed": 1, "probe.epochs": 2}')  # what is scored again


def test_the_page_runs_from_top_to_bottom(in_process, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", shorter(PAGE), re.S):
        exec(compile(block, "docs/api.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "points (3 tasks)" in printed
    assert "nyu-mll/glue sst2 ('negative', 'positive')" in printed
    assert "Did you mean 'finetune.learning-rate'" in printed
    assert "4 contributors are ready" in printed
    run, scored = names["run"], names["scored"]
    assert (tmp_path / "runs" / "first" / "report.html").exists()
    last = {r["task"]: r["value"] for r in run.scores if r["iteration"] == 2}
    assert {r["task"]: r["value"] for r in scored.scores} == last  # the same body, the same draws
    assert scored.gains("frozen") == run.gains("frozen")
    assert (names["folder"] / "model.safetensors").exists()
    assert (tmp_path / "runs" / "first" / "dropbox" / "alice" / "model.safetensors").exists()
    again = cold_flower_command(
        "evaluate", str(run.latest), "--suite", "demo", "--protocols", "frozen",
        "--against", "runs/first", "--run-dir", "runs/scored", "--set", "seed=1",
        "--set", "tasks=travel,music,kitchen,market", "--set", "probe.epochs=2", cwd=tmp_path,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "runs/scored is complete: nothing is left to do" in again.stdout
    assert "gain ± SE" in again.stdout


def outputs(notebook) -> list[list]:
    """Return what each code cell shows, but for warnings of libraries."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return [[one for one in cell if one.get("name") != "stderr"] for cell in cells]


@pytest.mark.real
def test_the_notebook_runs_and_is_small(tmp_path) -> None:
    assert NOTEBOOK.stat().st_size < 40_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shipped = outputs(notebook)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = shorter(first.source)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    ran = outputs(notebook)
    assert [len(cell) for cell in ran] == [len(cell) for cell in shipped]
    assert len(nbformat.writes(notebook)) < 60_000
    (table,) = (
        output.data["text/html"] for output in ran[1] if "text/html" in output.get("data", {})
    )
    assert "gain" in table
    assert (tmp_path / "runs" / "quickstart" / "iterations" / "latest").is_symlink()
