"""T5 as a classifier: likelihoods against T5's own loss and by hand; the frozen head."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from cold_flower.config import Config, Finetune
from cold_flower.contributors.contributor import Contributor
from cold_flower.data.encode import EncodedSplits, encode
from cold_flower.data.suite import load_suite
from cold_flower.errors import ConfigError, ModelError, TaskError
from cold_flower.models.base import load_base
from cold_flower.models.body import body_of, prefix_of
from cold_flower.models.classifier import classifier
from cold_flower.models.heads import head_of
from cold_flower.models.starting import save_starting_model, starting_model
from cold_flower.models.text_to_text import (
    IGNORED,
    check,
    check_statistic,
    label_tokens,
    log_likelihood,
)
from cold_flower.repository.bases import Repository
from cold_flower.runtime import experiments
from cold_flower.training import probe
from cold_flower.training.finetune import finetune
from cold_flower.training.probe import train_lm_head
from cold_flower.training.protocols import evaluate
from cold_flower.training.scoring import autocast, logits_of
from cold_flower.training.statistics import statistic
from strategies.fusion import Weights, fingerprint
from tests.test_encode import some
from tests.test_evaluate import SEEDS

LABELS = ("nome", "karo zoda", "futu mafa nome")  # of one, two and three tokens
CPU = torch.device("cpu")


def untie(folder) -> None:
    """Make a T5 1.1 of it: a head of its own, and outputs that are not scaled."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    model.lm_head.weight = torch.nn.Parameter(model.shared.weight.detach().flip(0) / 4)
    model.config.scale_decoder_outputs = False
    model.save_pretrained(folder)


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(folders, request):
    folder = folders("t5", "T5ForConditionalGeneration")
    if request.param == "untied":
        untie(folder)
    return load_base(str(folder))


@pytest.fixture(scope="module")
def body(base):
    return starting_model(base, seed=0)[1]


def fresh_model(base, body, labels=LABELS):
    return classifier(base, body, labels=labels, kind="classification", seed=0).eval()


def test_there_is_no_head_to_keep(base, body) -> None:
    assert head_of(fresh_model(base, body)) == {}


def learnable(base, n, seed=0):
    """Texts of two words, of which the first tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator).tolist()
    noise = torch.randint(2, (n,), generator=generator).tolist()
    first, second = ("zoda", "futu", "mafa"), ("nome", "karo")
    texts = [(f"{first[i]} {second[j]}",) for i, j in zip(labels, noise, strict=True)]
    return encode(base.tokenizer, texts, labels, max_length=16)


def test_the_loss_of_one_example_is_t5s_own_times_its_tokens(base, body) -> None:
    model = fresh_model(base, body)
    own = AutoModelForSeq2SeqLM.from_pretrained(base.name).eval()
    data = some(base, 3)
    for label, words in enumerate(label_tokens(base.tokenizer, LABELS)):
        batch = data.batch([label])
        theirs = own(**batch, labels=torch.tensor([words])).loss * len(words)
        ours = model(**batch, labels=torch.tensor([label])).loss
        assert torch.allclose(ours, theirs, rtol=1e-5)
        assert words[-1] == base.tokenizer.eos_token_id
        assert len(words) == label + 2


def test_a_classes_score_is_the_sum_of_its_tokens_log_softmax(base, body) -> None:
    model, data = fresh_model(base, body), some(base, 4)
    batch = data.batch(range(4))
    got = model(**batch).logits
    assert got.shape == (4, 3)
    start = base.config.decoder_start_token_id
    for label, words in enumerate(label_tokens(base.tokenizer, LABELS)):
        shifted = torch.tensor([[start, *words[:-1]]] * 4)
        out = model.base_model(**batch, decoder_input_ids=shifted).logits.log_softmax(-1)
        want = sum(out[:, place, token] for place, token in enumerate(words))
        assert torch.allclose(got[:, label], want, rtol=1e-5)


def test_what_is_trained_is_what_is_scored(base, body) -> None:
    model, data = fresh_model(base, body), some(base, 9)
    batch = data.batch(range(9))
    for precision, close in (("fp32", 1e-6), ("bf16", 2e-2)):
        with autocast(CPU, precision):
            loss = model(**batch, labels=data.labels).loss
            scores = model(**batch).logits
        assert loss.dtype == scores.dtype == torch.float32
        assert torch.allclose(loss, -scores[range(9), data.labels].mean(), rtol=close)


def test_likelihoods_by_hand() -> None:
    logits = torch.zeros(2, 2, 4)
    logits[1, 0, 3] = torch.tensor(3.0).log()  # 3 of 6 beside three times 1
    targets = torch.tensor([[0, IGNORED], [3, 1]])
    want = torch.tensor([1 / 4, 1 / 2 * 1 / 4]).log()
    assert torch.allclose(log_likelihood(logits, targets), want)


def test_padding_changes_nothing(base, body) -> None:
    model, data = fresh_model(base, body), some(base, 9)
    together = logits_of(model, data, "fp32")
    alone = torch.cat([logits_of(model, data.take([i]), "fp32") for i in range(9)])
    assert torch.allclose(together, alone, rtol=1e-4)
    assert together.std(0).min() > 1e-3, "the examples differ"


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_micro_batches_equal_the_whole_batch(base, body, optimizer) -> None:
    bodies = []
    for micro in (0, 3):
        m = fresh_model(base, body)
        for module in m.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
        options = Finetune(
            batch_size=8,
            micro_batch_size=micro,
            max_epochs=1,
            precision="fp32",
            optimizer=optimizer,
        )
        finetune(m, some(base, 20), None, options=options, metric="accuracy", seed=0)
        bodies.append(body_of(m))
    assert all(torch.allclose(bodies[0][k], bodies[1][k], atol=1e-5) for k in body)
    assert not torch.equal(bodies[0]["shared.weight"], body["shared.weight"])


def test_all_of_it_is_the_body_and_a_tied_head_is_in_it_once(base, body) -> None:
    model = fresh_model(base, body)
    assert (
        body_of(model).keys() == body.keys() == {n for n, _ in model.base_model.named_parameters()}
    )
    assert fingerprint(body_of(model).items()) == fingerprint(body.items())
    tied = model.base_model.lm_head.weight is model.base_model.shared.weight
    assert tied == ("lm_head.weight" not in body)


def test_what_is_published_is_a_t5_with_the_same_scores(base, body, tmp_path) -> None:
    start, _ = starting_model(base, seed=0)
    assert prefix_of(start) == ""
    model = fresh_model(base, body)
    options = Finetune(learning_rate=1e-3, batch_size=8, max_epochs=1, precision="fp32")
    finetune(model, some(base, 20), None, options=options, metric="accuracy", seed=0)
    repository = Repository(tmp_path)
    repository.create(lambda to: save_starting_model(start, base, to), body, prefix_of(start), {})
    repository.publish(1, 0, Weights(body_of(model)), {})
    path = str(repository.path(1))
    again = load_base(path)
    assert again.sha256 == base.sha256
    loaded, loaded_body = starting_model(again, seed=0)
    assert fingerprint(loaded_body.items()) == fingerprint(body_of(model).items())
    data = some(base, 3)
    got = fresh_model(again, body_of(AutoModelForSeq2SeqLM.from_pretrained(path)))
    assert torch.equal(logits_of(got, data, "fp32"), logits_of(model, data, "fp32"))
    assert type(loaded).__name__ == "T5ForConditionalGeneration"


def test_frozen_trains_the_untied_head_alone(base, body) -> None:
    model, data = fresh_model(base, body), learnable(base, 30)
    options = Config().probe
    train_lm_head(model, data, "fp32", options=replace(options, epochs=2), batch_size=8, seed=0)
    after = dict(model.base_model.state_dict())
    head = after.pop("lm_head.weight")
    assert not torch.equal(head, body.get("lm_head.weight", body["shared.weight"]))
    assert all(torch.equal(after[k], body[k]) for k in body.keys() & after.keys())
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "base_model.lm_head.weight"
    ]


def test_frozen_ends_when_its_time_is_up_and_reads_no_more_than_a_micro_batch(
    base, body, monkeypatch
) -> None:
    batches, sizes = probe.evaluation_batches, []

    def watched(*given):
        for batch, rows in batches(*given):
            sizes.append(len(rows))
            yield batch, rows

    monkeypatch.setattr(probe, "evaluation_batches", watched)
    model, data = fresh_model(base, body), learnable(base, 30)
    options = {"options": Config().probe, "batch_size": 8, "seed": 0}
    train_lm_head(model, data, "fp32", **options, micro_batch_size=4, until=0.0)
    head = model.base_model.state_dict()["lm_head.weight"]
    assert torch.equal(head, body.get("lm_head.weight", body["shared.weight"]))
    assert sizes == [4] * 7 + [2]


def test_the_cached_states_are_what_the_head_reads(base, body) -> None:
    model, data = fresh_model(base, body), learnable(base, 6)
    states = model.states(**data.batch(range(6)), labels=data.labels)
    targets = model.words[data.labels]
    cached = log_likelihood(model.base_model.lm_head(states), targets)
    direct = model(**data.batch(range(6))).logits[range(6), data.labels]
    assert torch.allclose(cached, direct, rtol=1e-5)


def test_the_protocols_learn_and_leave_the_body_alone(base, body) -> None:
    train, test = learnable(base, 60), learnable(base, 30, seed=1)
    data = EncodedSplits(train, train, test, LABELS, "classification", "accuracy")
    config = Config.from_flat(
        {
            "finetune.learning-rate": 1e-2,
            "finetune.batch-size": 8,
            "finetune.max-epochs": 15,
            "finetune.precision": "fp32",
            "probe.learning-rate": 3e-2,
            "few-shot.examples": 30,
            "few-shot.draws": 1,
            "few-shot.batch-size": 8,
        }
    )
    before = fingerprint(body.items())
    scores, _ = evaluate(base, body, data, ["frozen", "finetuned", "few-shot"], config, SEEDS)
    assert fingerprint(body.items()) == before
    assert scores["frozen"] > 0.6  # of three classes
    assert scores["finetuned"] > 0.9
    assert scores["few-shot"] > 0.5
    assert evaluate(base, body, data, ["frozen"], config, SEEDS)[0]["frozen"] == scores["frozen"]


def task(**changes):
    entry = load_suite("demo").tasks["travel"]
    return replace(entry, **{"labels": LABELS, **changes})


def test_classes_without_words_are_refused(base) -> None:
    check(base, task(), LABELS)
    with pytest.raises(TaskError, match=r"task travel \(suite demo\): no label words.*labels = \["):
        check(base, task(labels=()), ("0", "1", "-1"))
    with pytest.raises(TaskError, match=r"'0' and '1' are the same tokens"):
        check(base, task(labels=("0", "1")), ("0", "1"))  # given, so looked at: both unknown
    with pytest.raises(TaskError, match=r"'lorem' and 'ipsum' are the same tokens"):
        check(base, task(), ("nome", "lorem", "ipsum"))
    with pytest.raises(TaskError, match=r"kind is regression.*encoder"):
        check(base, task(kind="regression", labels=()), ("",))
    check(load_base("demo"), task(kind="regression", labels=()), ("",))


@pytest.mark.parametrize("labels", ["", 'labels = ["train", "ship"]'])
def test_that_is_said_before_anything_starts_and_at_a_contributor(base, tmp_path, labels) -> None:
    suite = tmp_path / "mine.toml"
    suite.write_text(
        f"""
        [tasks.travel]
        source = "demo"
        text = ["text"]
        label = "label"
        {labels}
        splits = {{ train = "train", test = "test" }}
        """
    )
    keys = {"suite": str(suite), "base-model": base.name, "contributors-per-iteration": 0}
    config = Config.from_flat(keys)
    words = "'train' and 'ship' are the same tokens" if labels else "no label words"
    with pytest.raises(TaskError, match=rf"task travel \({suite}\): .*{words}"):
        experiments.check(config)
    with pytest.raises(TaskError, match=words):
        Contributor(config, 0).splits()
    shards = {"partition.kind": "shards", "partition.shards": 2, "partition.examples": 9}
    with pytest.raises(TaskError, match=words):
        experiments.check(Config.from_flat({**config.flat(), **shards}))
    # an encoder has a head for any classes
    experiments.check(Config.from_flat({**config.flat(), "base-model": "demo"}))


def test_a_t5_without_a_decoder_is_refused(folders) -> None:
    with pytest.raises(ModelError, match=r"T5EncoderModel.*a checkpoint of T5ForConditional"):
        load_base(str(folders("t5", "T5EncoderModel")))


def test_its_data_have_a_fisher_information_and_no_grams(base, body) -> None:
    """A class is drawn by its words' likelihood; the tied head counts with the embedding."""
    data = some(base, 4)
    found = statistic("fisher", fresh_model(base, body), data, regression=False, seed=0)
    assert found.keys() == body.keys()
    assert all((tensor >= 0).all() and tensor.shape == body[k].shape for k, tensor in found.items())
    assert found["shared.weight"].sum() > 0
    with pytest.raises(ConfigError, match="is text to text, for which there are no grams"):
        check_statistic(base, "gram")
