"""`cold-flower statistics`, and rules that need them in `cold-flower fuse`."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from cold_flower.commands.data_statistics import FILE, print_of
from strategies.fusion import Weights, load, read_metadata
from tests.test_cli import cold_flower
from tests.test_offline import base, finetuned  # noqa: F401 - fixtures

MUSIC = ("--suite", "demo", "--task", "music", "--set", "finetune.max-examples=40")


def files(*folders):
    return [part for folder in folders for part in ("--statistics", str(folder))]


@pytest.fixture
def models(base, finetuned) -> list[str]:  # noqa: F811
    made = [finetuned(name, shift) for name, shift in (("a", 0.01), ("bb", 0.03))]
    for folder in made:
        with_tokenizer(base, Path(folder))
    return made


def with_tokenizer(base, folder: Path) -> None:  # noqa: F811
    for file in base.glob("*token*"):
        shutil.copy(file, folder)


@pytest.mark.parametrize(("rule", "kind"), [("fisher", "fisher"), ("regmean", "gram")])
def test_models_on_a_disk(rule, kind, base, models, tmp_path) -> None:  # noqa: F811
    for model in models:
        out = model + "-statistic"
        done = cold_flower("statistics", model, *MUSIC, "--kind", kind, "--out", out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"the {kind} of {model} on music: {out}" in done.stdout
        facts = read_metadata(tmp_path / out / FILE)
        assert (facts["kind"], facts["task"]) == (kind, "music")
    given = [f"{model}-statistic" for model in models]
    fuse = ("fuse", rule, "--base", str(base), "--out")
    done = cold_flower(*fuse, "fused", *files(*given), *models, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--statistics" in (tmp_path / "fused" / "README.md").read_text()

    # The same rule on the bodies as they are in memory.
    start = load_file(base / "model.safetensors")
    names = {n.removeprefix("roberta."): n for n in start if n.startswith("roberta.")}
    theta = Weights(start, stored_as=names)
    bodies = []
    for model, folder in zip(models, given, strict=True):
        found = load_file(tmp_path / folder / FILE)
        bare = {name.partition(".")[2]: name for name in found}
        statistic = Weights(found, stored_as=bare)
        own = load_file(f"{model}/model.safetensors")
        bodies.append(Weights(own, name=model, stored_as=names, statistic=statistic))
    fused = load_file(tmp_path / "fused" / "model.safetensors")
    for key, tensor in load(rule)(theta, bodies):
        assert torch.equal(fused[names[key]], tensor), key

    swapped = cold_flower(*fuse, "other", *files(*given[::-1]), *models, cwd=tmp_path)
    assert swapped.returncode == 1
    assert "the folders come in the order of the models" in " ".join(swapped.stderr.split())
    silent = cold_flower(*fuse, "other", *models, cwd=tmp_path)
    assert silent.returncode == 1
    assert f"needs a statistic of each model, {kind}: give --statistics DIR for each" in (
        " ".join(silent.stderr.split())
    )
    assert not (tmp_path / "other").exists()


def test_what_does_not_fit_is_said(base, models, tmp_path) -> None:  # noqa: F811
    model = models[0]

    start = load_file(base / "model.safetensors")
    names = {n.removeprefix("roberta."): n for n in start if n.startswith("roberta.")}

    def error(*arguments: str) -> str:
        done = cold_flower(*arguments, cwd=tmp_path)
        assert done.returncode == 1
        return " ".join(done.stderr.split())

    def make(model, kind="fisher", task="music"):
        chosen = ("--suite", "demo", "--task", task, "--set", "finetune.max-examples=20")
        return ("statistics", str(model), *chosen, "--kind", kind, "--out", "s")

    assert "has no head (classifier.dense.bias): the Fisher" in error(*make(base))
    assert "no statistic 'hessian': there are fisher, gram, gram-full" in error(
        *make(model, "hessian")
    )
    assert "musik" in error(*make(model, task="musik"))
    two = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    two.save_pretrained(tmp_path / "two")
    with_tokenizer(base, tmp_path / "two")
    assert "two' has 2 classes, task music has 3" in error(*make(tmp_path / "two"))
    assert not (tmp_path / "s").exists()

    fuse = ("fuse", "fisher", "--base", str(base), "--out", "fused")
    assert "holds no statistic" in error(*fuse, *files("a"), model)
    (tmp_path / "bad").mkdir()
    save_file({"fisher.x": torch.ones(1)}, tmp_path / "bad" / FILE, {"kind": "gram", "body": ""})
    assert "bad holds gram, the fusion rule needs fisher" in error(*fuse, *files("bad"), model)
    save_file({"fisher.x": torch.ones(1)}, tmp_path / "bad" / FILE, {"kind": "fisher", "body": ""})
    said = "the folders come in the order of the models, each made of the model that is fused"
    assert said in error(*fuse, *files("bad"), model)
    own = print_of(dict(Weights(load_file(f"{model}/model.safetensors"), stored_as=names).items()))
    save_file({"fisher.x": torch.ones(1)}, tmp_path / "bad" / FILE, {"kind": "fisher", "body": own})
    assert "bad, for model" in error(*fuse, *files("bad"), model)
    plain = ("fuse", "average", "--base", str(base), "--out", "fused")
    assert "this fusion rule takes no statistics" in error(*plain, *files("bad"), model)
