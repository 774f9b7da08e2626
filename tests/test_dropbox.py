"""The drop box: models that were finetuned elsewhere, with transformers or peft alone."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cold_flower.commands.contribute import contribute
from cold_flower.config import Config
from cold_flower.errors import ConfigError, ModelError, RunError
from cold_flower.models import vocabularies
from cold_flower.models.adapter import Adapter
from cold_flower.models.base import load_base
from cold_flower.models.body import prefix_of
from cold_flower.models.folder import ADAPTER, Folder
from cold_flower.models.starting import save_starting_model, starting_model
from cold_flower.repository import dropbox
from cold_flower.repository.bases import Repository
from cold_flower.repository.dropbox import STATED, Dropbox, Stated
from cold_flower.repository.journal import LEFT, SITES, Journal
from cold_flower.repository.kept import Kept
from cold_flower.runtime import experiments, sweep
from cold_flower.server.drops import FromDropbox, lacking
from cold_flower.server.finetuned import examine, files
from strategies.contributions import FROM, Contribution, Start, Store
from strategies.fusion import Weights, fingerprint
from strategies.participants import Drops
from strategies.staleness import discount
from tests.conftest import FakeGrid
from tests.test_asynchronous import Repeated
from tests.test_cli import cold_flower
from tests.test_inbox import BASE, Here, trained
from tests.test_simulation import SMALL, rows

Finetuned = Callable[..., Path]
WEIGHTS = "model.safetensors"
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft


def noise(body: dict, seed: int, size: float = 0.02) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {k: t + size * torch.randn(t.shape, generator=generator) for k, t in body.items()}


def begun(run_dir: Path, model: str = "demo") -> Repository:
    """A run directory with a start, and one further base."""
    repository, base = Repository(run_dir), load_base(model)
    starting, body = starting_model(base, 0)
    repository.create(
        lambda folder: save_starting_model(starting, base, folder), body, prefix_of(starting), {}
    )
    repository.publish(1, 0, Weights(noise(body, 1)), {"contributors": []})
    return repository


@pytest.fixture
def repository(tmp_path, folders) -> Repository:
    return begun(tmp_path / "run", str(folders("bert", "BertModel")))


@pytest.fixture
def finetuned(tmp_path) -> Finetuned:
    """Return a function that finetunes a base as transformers saves it: another head, and noise."""

    def make(repository: Repository, iteration: int, seed: int = 5, to: str = "") -> Path:
        folder = tmp_path / (to or f"model-{iteration}-{seed}")
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            repository.path(iteration), num_labels=3
        )
        inside = dict(model.base_model.named_parameters())
        with torch.no_grad():
            for name, moved in noise(inside, seed).items():
                inside[name].copy_(moved)
        model.save_pretrained(folder)
        shutil.copy2(repository.path(0) / "tokenizer.json", folder)
        return folder

    return make


def change(folder: Path, edit: Callable[[dict], object]) -> Path:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


def body_of(repository: Repository, model: Path) -> dict:
    folder = Folder(str(model))
    return {key: folder[folder.body[key]] for key in repository.manifest(0)["body"]}


# Which base, and whether it fits.


@pytest.mark.parametrize("iteration", [0, 1])
def test_the_nearest_base_is_recognised_whatever_the_head(repository, finetuned, iteration) -> None:
    model = finetuned(repository, iteration)
    found = examine(str(model), repository, 3)
    assert found.iteration == iteration
    assert found.base == repository.sha256(iteration)
    assert re.fullmatch(
        rf"base {iteration}, the nearest \((99|100|101)% of it is in the model; base "
        rf"{1 - iteration} is 1\.4\d times as far: state which it was, by --base or in contribution.json\)",
        found.recognised,
    )
    given = dict(found.items(repository.body(iteration)))
    assert [*given] == repository.body(0).keys()
    assert fingerprint(given.items()) == fingerprint(body_of(repository, model).items())


def test_there_is_no_doubt_where_the_other_bases_are_far(repository, finetuned) -> None:
    far = {key: tensor + 1 for key, tensor in repository.body(0).items()}
    repository.publish(2, 1, Weights(far), {"contributors": []})
    repository.prune(1)
    assert "times as far" not in examine(str(finetuned(repository, 0)), repository, 3).recognised


def test_a_stated_base_counts_even_where_another_is_nearer(repository, finetuned) -> None:
    model = finetuned(repository, 1)
    found = examine(str(model), repository, 3, stated=repository.sha256(0))
    assert found.iteration == 0
    assert "base 0, as stated (" in found.recognised
    with pytest.raises(ModelError, match=r"sha256 feed.* none of this run's: 1 has .*, 0 has"):
        examine(str(model), repository, 3, stated="feed" * 16)


def test_what_a_model_was_saved_without_is_its_own_bases(repository, finetuned) -> None:
    def forget(tensors: dict) -> None:
        for key in [key for key in tensors if "pooler." in key]:
            del tensors[key]

    model = change(finetuned(repository, 1), forget)
    given = dict(examine(str(model), repository, 3).items(repository.body(1)))
    pooler = [key for key in given if key.startswith("pooler.")]
    assert pooler
    for key in pooler:
        assert torch.equal(given[key], repository.body(1).get(key))


def test_halves_are_fused_in_float32(repository, finetuned) -> None:
    model = finetuned(repository, 0)
    change(model, lambda tensors: tensors.update({k: t.bfloat16() for k, t in tensors.items()}))
    given = dict(examine(str(model), repository, 3).items(repository.body(0)))
    assert {tensor.dtype for tensor in given.values()} == {torch.float32}
    assert torch.equal(given["pooler.dense.weight"], body_of(repository, model)[
        "pooler.dense.weight"].float())  # fmt: skip


def of_another_start(model: Path, repository: Repository) -> None:
    torch.manual_seed(99)
    other = transformers.BertModel(transformers.BertConfig.from_pretrained(model)).state_dict()
    change(model, lambda tensors: tensors.update({f"bert.{k}": t for k, t in other.items()}))


def with_nan(model: Path, repository: Repository) -> None:
    change(model, lambda tensors: tensors["bert.pooler.dense.bias"].fill_(float("nan")))


def with_other_words(model: Path, repository: Repository) -> None:
    text = json.loads((model / "tokenizer.json").read_text())
    first, second, *_ = [word for word in text["model"]["vocab"] if word.isalpha()]
    vocab = text["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (model / "tokenizer.json").write_text(json.dumps(text))


def with_more_words(model: Path, repository: Repository) -> None:
    def grow(tensors: dict) -> None:
        key = "bert.embeddings.word_embeddings.weight"
        tensors[key] = torch.cat([tensors[key], torch.zeros(2, tensors[key].shape[1])])

    change(model, grow)


def computing_otherwise(model: Path, repository: Repository) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))


def without_a_layer(model: Path, repository: Repository) -> None:
    change(model, lambda tensors: tensors.pop("bert.encoder.layer.0.output.dense.weight"))


def the_base_itself(model: Path, repository: Repository) -> None:
    body = dict(repository.body(1).items())
    change(model, lambda tensors: tensors.update({f"bert.{k}": t for k, t in body.items()}))


def fused_before(model: Path, repository: Repository) -> None:
    sha256 = fingerprint(body_of(repository, model).items())
    row = {"name": "ann", "verdict": "accepted", "sha256": sha256}
    body = Weights(noise(dict(repository.body(1).items()), 2))
    repository.publish(2, 1, body, {"contributors": [row]})


def in_a_pickle(model: Path, repository: Repository) -> None:
    (model / WEIGHTS).rename(model / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (of_another_start, r"holds -?\d% of any base of this run, at least 50%"),
        (with_nan, "pooler.dense.bias holds NaN or infinity"),
        (with_other_words, "another tokenizer"),
        (with_more_words, r"word_embeddings.weight has shape .* \(another vocabulary or size\?\)$"),
        (computing_otherwise, "hidden_act = 'relu'"),
        (without_a_layer, "no tensor encoder.layer.0.output.dense.weight"),
        (the_base_itself, "is base 1 itself, not finetuned"),
        (fused_before, "the same weights went into iteration 2 as ann"),
        (in_a_pickle, "no model.safetensors"),
    ],
)
def test_what_cannot_be_fused_is_refused_by_name(repository, finetuned, harm, reason) -> None:
    model = finetuned(repository, 1)
    harm(model, repository)
    with pytest.raises(ModelError, match=reason):
        examine(str(model), repository, 3)


def test_too_old_a_base_is_refused_and_one_without_weights_is_not_guessed(
    repository, finetuned
) -> None:
    model = finetuned(repository, 0)
    with pytest.raises(ModelError, match="base 0, which is 1 bases older .* at most 0 count"):
        examine(str(model), repository, 0)
    newer = finetuned(repository, 1)
    repository.publish(
        2, 1, Weights(noise(dict(repository.body(1).items()), 2)), {"contributors": []}
    )
    repository.prune(1)
    with pytest.raises(RunError, match="iteration 1 has no weights any more"):
        examine(str(newer), repository, 3, stated=repository.sha256(1))


def test_no_code_of_a_model_is_run(repository, finetuned) -> None:
    """A tokenizer with code of its own is refused without asking at a terminal."""
    model = finetuned(repository, 1)
    (model / "tokenizer.json").unlink()
    (model / "spiece.model").write_bytes(b"nothing")
    auto = {"auto_map": {"AutoTokenizer": ["code.Own", None]}, "tokenizer_class": "Own"}
    (model / "tokenizer_config.json").write_text(json.dumps(auto))
    (model / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="unreadable vocabulary"):
        vocabularies.read(Folder(str(model)))
    assert "code.py" not in files(model)


@pytest.mark.parametrize(
    ("family", "start", "saved"),
    [
        ("albert", "AlbertModel", "AlbertForSequenceClassification"),
        ("deberta-v2", "DebertaV2Model", "DebertaV2ForSequenceClassification"),
        ("distilbert", "DistilBertModel", "DistilBertForSequenceClassification"),
        ("modernbert", "ModernBertForMaskedLM", "ModernBertForSequenceClassification"),
        ("mpnet", "MPNetModel", "MPNetForTokenClassification"),
        ("roberta", "RobertaForMaskedLM", "RobertaForSequenceClassification"),
        ("t5", "T5ForConditionalGeneration", "T5ForConditionalGeneration"),
    ],
)
def test_every_family(tmp_path, folders, family, start, saved) -> None:
    """A body's names are those in the file of another class of the family."""
    repository = begun(tmp_path / "run", str(folders(family, start)))
    model = getattr(transformers, saved).from_pretrained(repository.path(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(tmp_path / "model")
    given = dict(examine(str(tmp_path / "model"), repository, 3).items(repository.body(1)))
    for key, tensor in repository.body(1).items():
        gone = key.startswith("pooler.") and saved.startswith(("Roberta", "MPNet"))
        torch.testing.assert_close(given[key], tensor if gone else tensor + 0.01)


# Adapters, against peft.


def adapter(repository: Repository, folder: Path, iteration: int = 1, **options) -> Path:
    """Make an adapter of a base with peft; beside it, merged, what peft makes of the two."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        repository.path(iteration), num_labels=3
    )
    given = {"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query", "value"], **options}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**given))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(folder)
    wrapped.merge_and_unload().save_pretrained(folder.with_name("merged"))
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {
            "target_modules": ["query", "value", "dense"],
            "rank_pattern": {"value": 2},
            "alpha_pattern": {"output.dense": 5, "query": 1},
        },
    ],
)
def test_an_adapter_adds_what_peft_merges(tmp_path, repository, options) -> None:
    folder = adapter(repository, tmp_path / "adapter", **options)
    found = examine(str(folder), repository, 3)
    assert found.recognised == "base 1, as its configuration says"
    merged = body_of(repository, tmp_path / "merged")
    moved = 0
    for key, tensor in found.items(repository.body(1)):
        torch.testing.assert_close(tensor, merged[key])
        moved += not torch.equal(tensor, repository.body(1).get(key))
    assert moved == len(found.changed) > 0


def test_an_adapter_of_a_transposed_layer(tmp_path) -> None:
    """GPT-2's Conv1D stores [in, out], also where the two are equal."""
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=16, num_labels=2
    )
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "base")
    base = Folder(str(tmp_path / "base"))
    model = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(
        r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, task_type="SEQ_CLS"
    )
    wrapped = peft.get_peft_model(model, lora)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape)
    wrapped.save_pretrained(tmp_path / "adapter")
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged, found = Folder(str(tmp_path / "merged")), Adapter(tmp_path / "adapter", base)
    assert len(found.keys) == 3  # c_attn, and the c_proj of attention and feed-forward
    for key in found.keys:
        added = merged[merged.body[key]] - base[base.body[key]]
        torch.testing.assert_close(found.difference(key), added, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "use_dora = True is more than plain LoRA.*merge_and_unload"),
        ({"bias": "all"}, "bias = 'all' is more than plain LoRA"),
        ({"modules_to_save": ["pooler"]}, "pooler.*is part of the body, saved whole"),
        ({"target_modules": ["word_embeddings"]}, "lora_embedding_A is of no weight"),
    ],
)
def test_more_than_plain_lora_is_refused(tmp_path, repository, options, reason) -> None:
    folder = adapter(repository, tmp_path / "adapter", **options)
    with pytest.raises(ModelError, match=reason):
        examine(str(folder), repository, 3)


def test_an_adapter_that_changed_its_base_too_is_refused(tmp_path, repository) -> None:
    folder = adapter(repository, tmp_path / "adapter")
    config = json.loads((folder / ADAPTER).read_text())
    (folder / ADAPTER).write_text(json.dumps({**config, "init_lora_weights": "pissa"}))
    with pytest.raises(ModelError, match="init_lora_weights = 'pissa'"):
        examine(str(folder), repository, 3)
    slow = {**config, "alpha_pattern": {"(a+)+": 3}}
    (folder / ADAPTER).write_text(json.dumps(slow))
    with pytest.raises(ModelError, match=r"alpha_pattern '\(a\+\)\+' is no name"):
        examine(str(folder), repository, 3)
    (folder / ADAPTER).write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(ModelError, match="of kind IA3"):
        examine(str(folder), repository, 3)


def test_an_adapter_has_to_say_its_base(tmp_path, repository) -> None:
    folder = adapter(repository, tmp_path / "adapter")
    config = json.loads((folder / ADAPTER).read_text())
    for where in ("", "/elsewhere/0001", str(repository.folder / "latest")):
        named = {**config, "base_model_name_or_path": where}
        (folder / ADAPTER).write_text(json.dumps(named))
        with pytest.raises(ModelError, match="state that base"):
            examine(str(folder), repository, 3)
    found = examine(str(folder), repository, 3, stated=repository.sha256(0))
    assert (found.iteration, found.how) == (0, "as stated")


def test_an_adapters_base_is_known_wherever_the_run_is_at_work(
    tmp_path, repository, monkeypatch
) -> None:
    """peft writes down the path as it was given, here from the run's parent."""
    Journal(tmp_path / "run").write("config.json", {"config": Config().flat(), "run": "x"})
    folder = adapter(repository, tmp_path / "adapter")
    config = json.loads((folder / ADAPTER).read_text())
    config["base_model_name_or_path"] = "run/iterations/0001"
    (folder / ADAPTER).write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "result.json").write_text("{}")  # it failed, before its last iteration
    lines: list[str] = []
    where = contribute("run", folder, name="ann", say=lines.append)
    assert lines[-1].endswith(f"--set iterations={Config().iterations}")
    monkeypatch.chdir("/")
    stated = Stated.read(tmp_path / where)
    found = examine(str(tmp_path / where), repository, 3, stated=stated.base)
    assert found.recognised == "base 1, as stated"
    folder = tmp_path / "run" / "dropbox" / "ann"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", ADAPTER, "adapter_model.safetensors", STATED,
    ]  # fmt: skip


def test_an_adapter_that_adds_nothing_is_the_base(tmp_path, repository) -> None:
    folder = adapter(repository, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({k: t * 0 if "lora_B" in k else t for k, t in tensors.items()}, file)
    with pytest.raises(ModelError, match="is base 1 itself"):
        examine(str(folder), repository, 3)


# The box.


@pytest.fixture
def box(tmp_path, monkeypatch) -> Dropbox:
    monkeypatch.setattr(dropbox, "SETTLED", 0.0)
    (tmp_path / "box").mkdir()
    return Dropbox(tmp_path / "box")


def test_a_model_appears_whole_and_is_moved_never_deleted(tmp_path, box) -> None:
    (tmp_path / "a").write_text("weights")
    where = box.put("ann", {"model.safetensors": tmp_path / "a"}, Stated("feed", 7))
    assert Stated.read(where) == Stated("feed", 7)
    with pytest.raises(RunError, match="waits to be taken already"):
        box.put("ann", {}, Stated())
    with pytest.raises(FileNotFoundError):
        box.put("bob", {"x": tmp_path / "gone"}, Stated())
    (box.folder / ".hidden").mkdir()
    (box.folder / "No name").mkdir()
    (box.folder / "file.safetensors").touch()
    assert box.waiting() == (["ann"], ["No name", "file.safetensors"])
    taken = box.take("ann", 3)
    assert box.taken(3) == {"ann": taken}
    assert box.taken(30) == box.taken(2) == {}
    assert box.waiting()[0] == []
    assert box.refuse(taken, "ann", "why").name == "ann"
    box.put("ann", {}, Stated())
    assert box.refuse(box.take("ann", 3), "ann", "again").name == "ann.2"
    texts = {path.name: path.read_text() for path in (box.folder / "refused").glob("*.txt")}
    assert texts == {"ann.txt": "why\n", "ann.2.txt": "again\n"}


def test_what_was_taken_for_an_iteration_that_is_not_made_waits_again(box) -> None:
    for name, iteration in (("ann", 3), ("bob", 4), ("cat", 5), ("dan", 4)):
        box.put(name, {}, Stated())
        box.take(name, iteration)
    box.put("dan", {}, Stated())  # a second one
    assert box.give_back(3, gone=["cat"]) == ["bob"]
    assert box.waiting()[0] == ["bob", "dan"]
    assert [[*box.taken(i)] for i in (3, 4, 5)] == [["ann"], ["dan"], ["cat"]]


def test_a_box_is_one_runs(tmp_path, repository) -> None:
    """Another one would fuse again, or instead, what was put there for this one."""
    box = tmp_path / "shared"
    box.mkdir()
    config = Config.from_flat({"run-dir": str(tmp_path / "run"), "dropbox": str(box)})
    Journal(tmp_path / "run").write("config.json", {"config": config.flat(), "run": "first"})
    for _ in range(2):  # begun, resumed
        FromDropbox(config, tmp_path / "run", lambda: (), (), print)
    resumed = Config.from_flat({**config.flat(), "resume": True})
    experiments.check_keys(resumed)
    with pytest.raises(ConfigError, match=r"shared is another run's: .* move \.run and taken away"):
        experiments.check_keys(config)
    Journal(tmp_path / "run").write("config.json", {"config": config.flat(), "run": "second"})
    with pytest.raises(ConfigError, match="is another run's"):
        FromDropbox(config, tmp_path / "run", lambda: (), (), print)
    (box / "taken" / "0001-ann").mkdir(parents=True)
    for left in (lambda: (box / ".run").write_text(""), lambda: (box / ".run").unlink()):
        left()
        with pytest.raises(ConfigError, match="is another run's"):  # would be its iteration 1's
            experiments.check_keys(config)
    shutil.rmtree(box / "taken")
    experiments.check_keys(config)
    (box / ".run").touch()  # a crash while it was written
    FromDropbox(config, tmp_path / "run", lambda: (), (), print)
    assert (box / ".run").read_text() == "second\n"


def test_the_runs_of_a_sweep_share_no_box(tmp_path) -> None:
    settings = {"dropbox": str(tmp_path)}
    with pytest.raises(ConfigError, match="two runs would share dropbox"):
        list(sweep.cells("demo", settings, {"seed": [0, 1]}, tmp_path / "runs"))
    assert len(list(sweep.cells("demo", settings, {"seed": [0]}, tmp_path / "runs"))) == 1


def test_a_folder_that_is_still_being_copied_waits(tmp_path, box, monkeypatch) -> None:
    """Whatever time its files bring with them."""
    clock = [100.0]
    monkeypatch.setattr(dropbox.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(dropbox, "SETTLED", 3.0)
    (box.folder / "ann").mkdir()
    assert not box.whole("ann")  # nothing yet
    file = box.folder / "ann" / "model.safetensors"
    file.write_bytes(b"a")
    seen = []
    for written in (b"", b"", b"more", b"", b"", b""):
        with file.open("ab") as opened:
            opened.write(written)
        clock[0] += 2
        seen.append(box.whole("ann"))
    assert seen == [False, False, False, False, True, True]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be used"),
        ("[]", "expected an object"),
        ('{"sha": ""}', "expected an object with base, examples"),
        ('{"base": 1}', "base is the sha256"),
        ('{"examples": true}', "examples is a number"),
        ('{"examples": -1}', "examples is a number"),
    ],
)
def test_what_an_owner_says_has_to_make_sense(tmp_path, text, reason) -> None:
    (tmp_path / STATED).write_text(text)
    with pytest.raises(ModelError, match=reason):
        Stated.read(tmp_path)


def test_a_rule_may_need_what_a_folder_does_not_have() -> None:
    with pytest.raises(ModelError, match=r"fisher needs a statistic \(fisher\)"):
        lacking(Config.from_flat({"fusion.rule": "fisher"}), Stated())
    weighted = Config.from_flat({"fusion.strategy": "FedAvg"})
    with pytest.raises(ModelError, match="needs num-examples .*--examples says it"):
        lacking(weighted, Stated())
    lacking(weighted, Stated(examples=5))
    by_size = Config.from_flat({"fusion.rule": "weighted_average"})
    with pytest.raises(ModelError, match="needs num-examples .*--examples says it"):
        lacking(by_size, Stated())
    lacking(Config.from_flat({**by_size.flat(), "fusion.options": "{power = 0}"}), Stated())
    with pytest.raises(ModelError, match="needs steps"):
        lacking(Config.from_flat({"fusion.rule": "fednova"}), Stated(examples=5))


# Beside contributors, and alone.


class Given(Drops):
    """A body a round, under a name; from the base of so many iterations before."""

    def __init__(self, bases, *drops: tuple[str, int, dict, int]) -> None:
        self.bases, self.drops = bases, list(drops)

        self.aside: list[tuple[str, int, str]] = []

    def names(self, iteration):
        return [name for name, due, *_ in self.drops if due == iteration]

    def refuse(self, name, iteration, reason):
        self.aside.append((name, iteration, reason))

    def next(self, iteration, here, form, store: Store):
        for name, due, body, age in self.drops:
            if due == iteration and name not in here:
                start = self.bases.recent(age + 1)[-1]
                one = Contribution(
                    name,
                    facts={FROM: "dropbox"},
                    start=Start(iteration, start[1]),
                )
                return store.put(one, body.items(), form)
        return None


def test_a_drop_is_fused_beside_the_contributors(tmp_path) -> None:
    run = Repeated(tmp_path, trained, participants=Here("ann"), staleness=0, older=2)
    shifted = {key: tensor + 5 for key, tensor in BASE.items()}
    run.inbox._collector._drops = Given(run.bases, ("dan", 1, shifted, 0), ("dan", 2, shifted, 1))
    bodies = run.run(2)
    first = {key: tensor + (1 + 5) / 2 for key, tensor in BASE.items()}
    assert torch.equal(bodies[1]["w"], first["w"])
    # In the second iteration its base is one older: it counts s(1) of what it added to that one.
    step = (1 + discount(1) * 5) / 2
    torch.testing.assert_close(bodies[2]["w"], first["w"] + step)
    names = [[one.name for one in part] for part in run.parts]
    assert names == [["ann", "dan"], ["ann", "dan"]]
    assert FakeGrid is type(run.grid)
    assert len(run.grid.sent) == 2  # nobody asked dan
    run.inbox._collector.put_aside("dan", "why")
    run.inbox._collector.put_aside("ann", "why")
    assert run.inbox._collector._drops.aside == [("dan", 2, "why")]


@pytest.fixture
def alone(tmp_path) -> list[str]:
    return [
        *SMALL,
        *("--set", "unseen=*", "--set", "schedule=asynchronous", "--set", "buffer=2"),
        *("--set", "evaluate.protocols=", "--set", "iterations=0", "--run-dir", "run"),
        *("--set", "keep-contributions=2"),
    ]


@pytest.mark.real
@pytest.mark.usefixtures("in_process")
def test_a_drop_box_alone_is_a_run(tmp_path, alone, finetuned, monkeypatch) -> None:
    monkeypatch.setattr(dropbox, "SETTLED", 0.1)
    run = tmp_path / "run"

    def go_on(iterations: int):
        more = ["--resume", "--set", f"iterations={iterations}"]
        return cold_flower("simulate", "demo", *alone, *more, cwd=tmp_path)

    assert cold_flower("simulate", "demo", *alone, cwd=tmp_path).returncode == 0
    repository = Repository(run)
    models = {name: finetuned(repository, 0, seed) for seed, name in enumerate(("ann", "zoe"))}
    (models["ann"] / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    put = cold_flower("contribute", "run", str(models["ann"]), "--name", "ann", cwd=tmp_path)
    assert (put.returncode, put.stderr) == (0, "")
    assert "waits in run/dropbox/ann: finetuned from base 0, the nearest" in put.stdout
    assert "--resume --run-dir run --set iterations=1" in put.stdout
    shutil.copytree(models["zoe"], run / "dropbox" / "zoe")  # as anybody may
    shutil.copytree(models["zoe"], run / "dropbox" / "music")  # a contributor's name
    done = go_on(1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "music refused: a contributor of this run has that name" in done.stdout
    body = dict(repository.body(0).items())
    mean = {key: tensor.clone() for key, tensor in body.items()}
    for model in models.values():
        for key, tensor in body_of(repository, model).items():
            mean[key] += (tensor - body[key]) / 2
    torch.testing.assert_close(dict(repository.body(1).items()), mean)
    told = {row["contributor"]: row for row in rows(run, "contributions.jsonl")}
    assert told.keys() == {"ann", "zoe"}
    assert (told["ann"]["from"], told["ann"]["licence"]) == ("dropbox", "mit")
    assert "licence" not in told["zoe"]
    assert told["zoe"]["recognised"].startswith("base 0, the nearest (")
    sha256 = fingerprint(body_of(repository, models["zoe"]).items())
    assert told["zoe"]["sha256"] == sha256
    assert Kept(run).numbers() == [1]
    assert Kept(run).lend(tmp_path / "incoming") == []  # another run has another drop box
    # The same again is refused, and a run of such things cannot be replayed.
    shutil.copytree(models["ann"], run / "dropbox" / "ann")
    for seed, name in enumerate(("cat", "dan"), 7):
        shutil.copytree(finetuned(repository, 0, seed), run / "dropbox" / name)
    with Journal(run).locked():
        Journal(run).append(LEFT, [{"contributor": "cat", "onto": None}])
    shutil.copytree(finetuned(repository, 1, 11), run / "dropbox" / "eve")
    done = go_on(2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ann refused: ann: the same weights went into iteration 1 as ann" in done.stdout
    assert "cat refused: it left this run for good" in done.stdout
    rows_of = {row["name"]: row for row in repository.manifest(2)["contributors"]}
    assert {name: row.get("staleness", 0) for name, row in rows_of.items()} == {"dan": 1, "eve": 0}
    worth = cold_flower("worth", "run", cwd=tmp_path)
    assert worth.returncode == 0, worth.stderr
    assert "4 sets were scored" in worth.stdout
    scored = Journal(run / "worth").rows("scores.jsonl")
    assert scored[0]["scores"].keys() == {"travel", "music", "kitchen", "market"}
    replayed = cold_flower("simulate", "--replay", "run", cwd=tmp_path)
    assert replayed.returncode == 1
    assert "took ann from a dropbox" in replayed.stderr
    gone = cold_flower("leave", "run", "eve", cwd=tmp_path)
    assert "iteration 2 without eve is 0003, from 0001: exact" in gone.stdout


@pytest.mark.usefixtures("in_process")
def test_what_was_taken_before_a_stop_is_taken_again(tmp_path, repository, finetuned) -> None:
    """Between moving a model and keeping its body: the iteration has it all the same."""
    config = Config.from_flat({"run-dir": str(tmp_path / "run")})
    box = Dropbox(tmp_path / "run" / "dropbox")
    box.put("ann", files(finetuned(repository, 1)), Stated())
    box.take("ann", 2)
    drops = FromDropbox(config, tmp_path / "run", lambda: (), (), print)
    assert list(drops.names(2)) == ["ann"]
    store = Store(tmp_path / "run" / "incoming", 2)
    store.open()
    form = repository.body(1).template()
    one = drops.next(2, {}, form, store)
    assert one
    assert (one.name, one.start.base) == ("ann", repository.sha256(1))
    assert one.facts["recognised"].endswith(
        "state which it was, by --base or in contribution.json)"
    )
    assert drops.next(2, {"ann": one}, form, store) is None  # once
    assert FromDropbox(config, tmp_path / "run", lambda: (), ("ann",), print).names(2) == []


@pytest.mark.usefixtures("in_process")
def test_a_second_one_of_the_name_waits_while_the_first_is_refused(
    tmp_path, repository, finetuned, monkeypatch
) -> None:
    monkeypatch.setattr("cold_flower.server.drops.LOOK", 0)
    monkeypatch.setattr("cold_flower.repository.dropbox.SETTLED", 0)
    config = Config.from_flat({"run-dir": str(tmp_path / "run")})
    box = Dropbox(tmp_path / "run" / "dropbox")
    model = files(finetuned(repository, 1))
    box.put("ann", model, Stated(base="f" * 64))
    box.take("ann", 2)
    box.put("ann", model, Stated())
    drops = FromDropbox(config, tmp_path / "run", lambda: (), (), print)
    store = Store(tmp_path / "run" / "incoming", 2)
    store.open()
    form = repository.body(1).template()
    assert drops.next(2, {}, form, store) is None
    assert (box.folder / "refused" / "ann").is_dir()
    one = drops.next(2, {}, form, store)
    assert one
    assert one.name == "ann"
    # What screening refuses is put aside, too: a run that goes on does not take it again.
    drops.refuse("ann", 2, "a copy of bob's")
    assert list(drops.names(2)) == []
    assert (box.folder / "refused" / "ann.2.txt").read_text() == "a copy of bob's\n"
    drops.refuse("zoe", 2, "was none of the box's")


def test_keys_about_a_drop_box(tmp_path) -> None:
    with pytest.raises(ConfigError, match="dropbox = /nowhere: there is no such folder"):
        experiments.check_keys(Config.from_flat({"suite": "demo", "dropbox": "/nowhere"}))
    nobody = {"suite": "demo", "unseen": "*"}
    with pytest.raises(ConfigError, match="If a drop box alone is to feed the run, set schedule"):
        experiments.check_keys(Config.from_flat(nobody))
    fed = {**nobody, "schedule": "asynchronous", "buffer": 3}
    assert experiments.check_keys(Config.from_flat(fed)).seen == ()
    with pytest.raises(ConfigError, match="gate.protocol has the contributors validate"):
        experiments.check_keys(Config.from_flat({**fed, "gate.protocol": "frozen"}))
    beside = {"suite": "demo", "schedule": "asynchronous", "buffer": 99}
    with pytest.raises(ConfigError, match="buffer is 99, .* set dropbox"):
        experiments.check_keys(Config.from_flat(beside))
    experiments.check_keys(Config.from_flat({**beside, "dropbox": str(tmp_path)}))
    experiments.check_keys(Config.from_flat({"dropbox": str(tmp_path), "staleness": 1}))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--name", "No"], "not a contributor name: 'No'"),
        (["--name", "music"], "has a contributor music"),
        (["--name", "clinic-a"], "has a contributor clinic-a"),
        (["--name", "clinic-b"], "has a contributor clinic-b"),
        (["--name", "ann", "--base", "7"], "no iteration 7"),
        (["--name", "ann", "--examples", "-1"], "--examples is -1"),
    ],
)
def test_contribute_refuses_what_the_run_would(tmp_path, repository, more, reason) -> None:
    journal, asked = Journal(tmp_path / "run"), more[more.index("--name") + 1]
    sites = {"sites.allow": "clinic-a,clinic-c"} if asked.startswith("clinic") else {}
    config = Config.from_flat(sites)
    journal.write("config.json", {"config": config.flat(), "run": "x"})
    journal.append(SITES, [{"site": "clinic-b", "event": "joined"}])  # and is away
    done = cold_flower("contribute", "run", "anything", *more, cwd=tmp_path)
    assert done.returncode == 1
    assert reason in done.stderr
    assert not (tmp_path / "run" / "dropbox").exists()
