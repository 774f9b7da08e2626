"""Statistics of the contributors' data: computed, sent, checked, kept, fused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MessageType, RecordDict
from torch import nn

from cold_flower.config import Config
from cold_flower.contributors import attacks
from cold_flower.contributors.contributor import Contributor
from cold_flower.contributors.egress import Egress
from cold_flower.contributors.site import load_site
from cold_flower.data.encode import Encoded
from cold_flower.data.plan import plan
from cold_flower.errors import ConfigError, LimitError, SiteError
from cold_flower.models.classifier import classifier
from cold_flower.models.starting import starting_model
from cold_flower.repository.bases import Repository
from cold_flower.runtime import cost as counted
from cold_flower.runtime import preview, resources
from cold_flower.runtime.experiments import Checked, configure
from cold_flower.server.strategy import needed
from cold_flower.training import statistics
from cold_flower.training.statistics import statistic
from strategies import records
from strategies.contributions import Contribution, Start, Store
from strategies.errors import FusionError, Refused
from strategies.fusion import Weights, fingerprint, load
from strategies.fusion import _statistics as forms
from tests.test_client_app import RUN
from tests.test_simulation import body_of as body_file
from tests.test_simulation import rows, simulate
from tests.test_site import arrays, log, send, site  # noqa: F401 - two are fixtures


class Logistic(nn.Module):
    """Three weights: the logit of class 1 is the sum of its tokens' weights, of class 0 it is 0."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.base_model = nn.Embedding.from_pretrained(torch.tensor(weights)[:, None], freeze=False)
        self.device = torch.device("cpu")

    def get_input_embeddings(self):
        return self.base_model

    def forward(self, input_ids, attention_mask):
        logit = (self.base_model(input_ids)[..., 0] * attention_mask).sum(1)
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(logit), logit], 1))


def encoded(texts: list[list[int]]) -> Encoded:
    lengths = torch.tensor([0, *map(len, texts)]).cumsum(0)
    ids = torch.tensor([token for text in texts for token in text], dtype=torch.int32)
    empty = torch.empty(0, dtype=torch.uint8)
    return Encoded(ids, empty, lengths, torch.zeros(len(texts), dtype=torch.long))


def test_the_fisher_information_of_three_weights_is_known() -> None:
    """Of one example p (1 - p) x^2, x the tokens counted; the mean over them, y drawn from p."""
    weights, texts = [0.5, -1.0, 0.3], [[0], [0, 1], [2, 2], [0, 1, 2]]
    found = statistic(
        "fisher", Logistic(weights), encoded(texts * 500), regression=False, seed=1, examples=2000
    )
    counts = np.array([[text.count(k) for k in range(3)] for text in texts], float)
    p = 1 / (1 + np.exp(-counts @ np.array(weights)))
    expected = (p * (1 - p) * (counts**2).T).mean(1)
    assert found.keys() == {"weight"}
    assert found["weight"][:, 0].numpy() == pytest.approx(expected, rel=0.1)
    # The square of a batch's gradient would be another thing: it is 0 in expectation, and grows.
    again = statistic("fisher", Logistic(weights), encoded(texts * 500), regression=False, seed=1)
    assert not torch.equal(again["weight"], found["weight"])  # 256 of them
    regression = statistic("fisher", Logistic(weights), encoded(texts), regression=True, seed=1)
    assert regression["weight"][:, 0].numpy() == pytest.approx((counts**2).mean(0))


def task(tiny, index: int = 0, **keys):
    me = Contributor(Config.from_flat({**RUN, **keys}), index)
    data, body = me.splits(), starting_model(tiny, seed=0)[1]
    model = classifier(tiny, body, labels=data.labels, kind=data.kind, seed=3, plain=True)
    return me, data, body, model


def test_the_fisher_information_is_that_of_every_weight(tiny) -> None:
    """Also of the word embedding, which is taken by the rows that an example reads."""
    _, data, body, model = task(tiny)
    few = data.train.take(range(5))
    found = statistic("fisher", model, few, regression=True, seed=0)
    weights = dict(model.base_model.named_parameters())
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for index in range(5):
        model.zero_grad()
        model(**few.batch([index])).logits.sum().backward()
        for name, weight in weights.items():
            squares[name] += 0 if weight.grad is None else weight.grad.square() / 5
    assert found.keys() == body.keys()
    assert found["embeddings.word_embeddings.weight"].count_nonzero() > 0
    for name, square in squares.items():
        torch.testing.assert_close(found[name], square, rtol=1e-4, atol=1e-9)


def test_grams_are_of_tokens_alone_and_shared_by_who_reads_the_same(tiny) -> None:
    _, data, body, model = task(tiny)
    grams = statistic("gram-full", model, data.train, regression=False, seed=0)
    together = {name for names in grams for name in names.split(",")}
    matrices = {n for n, t in body.items() if t.dim() == 2 and "embeddings" not in n}
    assert together == matrices
    (shared,) = (names for names in grams if "layer.0.attention.self.query.weight" in names)
    assert [n.split(".")[-2] for n in shared.split(",")] == ["query", "key", "value"]
    # Without padding, an example at a time, by hooks of our own.
    name = next(n for n in grams if n.endswith("layer.0.output.dense.weight"))
    layer = model.base_model.get_submodule(name.removesuffix(".weight"))
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0][0].detach()))
    with torch.no_grad():
        for index in range(len(data.train)):
            model(**data.train.batch([index]))
    hook.remove()
    x = torch.cat(seen)
    assert len(set(map(len, seen))) > 1  # so some were padded above
    whole = forms.unpack(grams[name], x.shape[1])
    torch.testing.assert_close(whole, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    some = statistic("gram", model, data.train, regression=False, seed=0)
    assert some.keys() == grams.keys()
    torch.testing.assert_close(some[name], whole.diagonal(), rtol=1e-4, atol=1e-5)
    assert torch.equal(some[shared], grams[shared])
    pooler = 4 * forms.packed(64)  # of the library's body, which a classifier has none of
    for kind, found in (("gram-full", grams), ("gram", some)):
        alone = sum(4 * len(t) * len(names.split(",")) for names, t in found.items())
        assert resources.statistic(tiny, kind) == alone + pooler
        form = {key: (t.dtype, tuple(t.shape)) for key, t in found.items()}
        template = Weights(body).template()
        forms.check_form(kind, form, template)
        for key, tensor in found.items():
            forms.check_values(kind, key, tensor, template)


def test_a_statistic_is_of_the_finetuned_model_and_its_own_head(tiny) -> None:
    me, _, body, _ = task(tiny)
    trained, metrics = me.finetune(body, iteration=1, seed=0, statistic="fisher")
    plain, _ = me.finetune(body, iteration=1, seed=0)
    assert all(trained[key].equal(tensor) for key, tensor in plain.items())
    beside = {key for key in trained if key.startswith("fisher.")}
    assert {key.removeprefix("fisher.") for key in beside} == plain.keys()
    assert any(trained[key].abs().sum() > 0 for key in beside)
    assert 0 < metrics["statistic-seconds"] < 60
    again, _ = me.finetune(body, iteration=1, seed=0, statistic="fisher")
    assert all(again[key].equal(trained[key]) for key in beside)
    with pytest.raises(ConfigError, match="no statistic 'hessian': there are fisher, gram"):
        me.finetune(body, iteration=1, seed=0, statistic="hessian")


def weights(name: str, matrix: torch.Tensor, **found: torch.Tensor) -> Weights:
    return Weights({"w": matrix}, name=name, statistic=Weights(found))


def test_a_dry_run_says_what_a_statistic_costs(tiny) -> None:
    config = Config.from_flat(
        {**configure("demo", {}).flat(), "iterations": 3, "contributors-per-iteration": 0}
    )
    checked = Checked(plan(config), *({name: 300 for name in plan(config).names} for _ in "ab"))
    said = {}
    for rule in ("average", "fisher", "regmean"):
        one = Config.from_flat({**config.flat(), "fusion.rule": rule})
        size = resources.statistic(tiny, needed(one)[0])
        said[rule] = counted.cost(one, checked, counted.ahead(one, checked), 10, size)
    plain, fisher, grams = said.values()
    assert (plain.statistic, plain.looked_at) == (0, 0)
    assert fisher.statistic == 4 * resources.parameters(tiny)
    assert (fisher.looked_at, grams.looked_at) == (24 * 256, 24 * 300)
    assert fisher.messages - plain.messages == 24 * fisher.statistic
    assert grams.disk - plain.disk == 8 * grams.statistic
    cells = [[*column.cells] for column in preview._costs(fisher, checked, 1, 1.0).columns]
    assert cells[2][cells[0].index("statistics")].startswith("of 6,144 training examples; ")
    assert "statistics" not in [*preview._costs(plain, checked, 1, 1.0).columns[0].cells]


def test_a_rule_says_what_it_needs() -> None:
    kinds = {"fisher": {}, "gram": {"gram": "diagonal-ffn"}, "gram-full": {"gram": "full"}}
    for kind, chosen in kinds.items():
        assert load("fisher" if kind == "fisher" else "regmean", **chosen).statistic == kind
    assert load("average").statistic == ""


def test_fisher_by_hand() -> None:
    base = Weights({"w": torch.zeros(3)})
    a = weights("a", torch.tensor([1.0, 1, 1]), w=torch.tensor([1.0, 3, 0]))
    b = weights("b", torch.tensor([3.0, 3, 3]), w=torch.tensor([1.0, 1, 2]))
    fused = dict(load("fisher", eps=1e-9, normalise=False)(base, [a, b]))["w"]
    assert fused.tolist() == pytest.approx([2.0, 1.5, 3.0])
    nobody = [weights(one.name, one.get("w"), w=torch.zeros(3)) for one in (a, b)]
    assert dict(load("fisher")(base, nobody))["w"].tolist() == [2.0, 2.0, 2.0]
    equal = dict(
        load("fisher", eps=0.5)(base, [a, weights("c", b.get("w"), w=a.statistic.get("w"))])
    )
    assert equal["w"].tolist() == [2.0, 2.0, 2.0]  # the mean, whatever they are
    loud = weights("b", b.get("w"), w=1000 * b.statistic.get("w"))
    normal = load("fisher", eps=1e-9)
    quiet, louder = (dict(normal(base, [a, other]))["w"] for other in (b, loud))
    assert quiet.tolist() == pytest.approx(louder.tolist())
    with pytest.raises(
        FusionError, match="needs a statistic of the data, fisher, which 1 of 2 .*: z"
    ):
        normal(base, [a, Weights({"w": torch.zeros(3)}, name="z")])


def test_regmean_is_least_squares_on_the_union() -> None:
    random = np.random.default_rng(0)
    inputs = [random.normal(size=(n, 4)) @ random.normal(size=(4, 4)) for n in (30, 30, 30)]
    layers = [random.normal(size=(3, 4)) for _ in inputs]
    outputs = [x @ w.T for x, w in zip(inputs, layers, strict=True)]
    union, *_ = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(outputs), rcond=None)
    base = Weights({"w": torch.tensor(random.normal(size=(3, 4)), dtype=torch.float32)})
    given = [
        weights(
            str(i),
            torch.tensor(w, dtype=torch.float32),
            w=forms.pack(torch.tensor(x.T @ x / len(x), dtype=torch.float32)),
        )
        for i, (x, w) in enumerate(zip(inputs, layers, strict=True))
    ]
    fused = dict(load("regmean", gram="full", alpha=1.0, normalise=False)(base, given))["w"]
    assert fused.numpy() == pytest.approx(union.T, abs=2e-3)
    # Of a gram of low rank float32 keeps a noise that must not be solved for.
    wide, moved = random.normal(size=(150, 384)), random.normal(size=(2, 384))
    low = forms.pack(torch.tensor(wide.T @ wide / 150, dtype=torch.float32))
    still = Weights({"w": torch.zeros(2, 384)})
    one = weights("one", torch.tensor(moved, dtype=torch.float32), w=low)
    step = dict(load("regmean", gram="full", alpha=1.0)(still, [one]))["w"].numpy()
    assert np.linalg.norm(step) < np.linalg.norm(moved)  # who knows some inputs moves along these
    assert step @ wide.T == pytest.approx(moved @ wide.T, rel=1e-2, abs=1e-1)
    # Off the diagonal a share counts.
    grams = [x.T @ x / len(x) for x in inputs]
    some = [0.3 * g + 0.7 * np.diag(np.diag(g)) for g in grams]
    right = sum(g @ w.T for g, w in zip(some, layers, strict=True))
    fused = dict(load("regmean", gram="full", alpha=0.3, normalise=False)(base, given))["w"]
    assert fused.numpy() == pytest.approx(np.linalg.solve(sum(some), right).T, abs=2e-3)
    # Of the diagonal alone: each input's weights by how large it is for each.
    squares = np.stack([(x**2).mean(0) for x in inputs])
    expected = sum(s * w for s, w in zip(squares, layers, strict=True)) / squares.sum(0)
    for alpha, kind in ((0.0, "full"), (0.1, "diagonal-ffn")):
        some = given
        if kind != "full":
            some = [
                weights(one.name, one.get("w"), w=forms.diagonal(one.statistic.get("w"), 4))
                for one in given
            ]
        fused = dict(load("regmean", gram=kind, alpha=alpha, normalise=False)(base, some))["w"]
        assert fused.numpy() == pytest.approx(expected, abs=2e-3)


def test_in_regmean_nobody_counts_for_more_and_all_know_the_same() -> None:
    base = Weights({"w": torch.zeros(2, 2)})
    eye = forms.pack(torch.eye(2))
    given = [
        weights("a", torch.ones(2, 2), w=eye),
        weights("b", 3 * torch.ones(2, 2), w=1e6 * eye),
    ]
    equal, louder = (
        dict(load("regmean", gram="full", normalise=normal)(base, given))["w"]
        for normal in (True, False)
    )
    assert equal.flatten().tolist() == pytest.approx([2.0] * 4, rel=1e-4)
    assert louder.flatten().tolist() == pytest.approx([3.0] * 4, rel=1e-4)
    two = Weights({"w": torch.zeros(2, 2), "v": torch.zeros(2, 2)})
    both = Weights({"w": torch.ones(2, 2), "v": torch.ones(2, 2)}, name="a")
    both.statistic = Weights({"w": eye, "v": eye})
    one = Weights({"w": torch.ones(2, 2), "v": torch.ones(2, 2)}, name="b")
    one.statistic = Weights({"w": eye})
    with pytest.raises(
        FusionError, match="b does not know of the same layers as the others, such as v"
    ):
        dict(load("regmean")(two, [both, one]))


@pytest.mark.parametrize("kind", ["scale", "sign-flip", "noise", "random", "nan", "label-flip"])
def test_an_attack_is_on_the_body_and_the_statistic_goes_along(tiny, kind) -> None:
    me, _, body, _ = task(tiny, 0, attacks=f"{{travel = '{kind}'}}")

    def finetune(who, start):
        return who.finetune(start, iteration=1, seed=0, statistic="fisher")

    answer = attacks.answer(me, body, finetune, iteration=1, seed=0)
    beside = {key.removeprefix("fisher.") for key in answer.body if key.startswith("fisher.")}
    assert beside == ({*body} if kind != "random" else beside)
    assert answer.body.keys() - {f"fisher.{key}" for key in beside} == body.keys()


BODY = {"m": (torch.float32, (2, 3)), "b": (torch.float32, (2,)), "p": (torch.int64, (4,))}
FLOAT = torch.float32


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("fisher", {}, "it sent no fisher statistic"),
        ("fisher", {"m": (2, 3)}, "missing fisher of 'b'"),
        ("fisher", {"m": (2, 3), "b": (2,), "p": (4,)}, "unexpected fisher of 'p'"),
        (
            "fisher",
            {"m": (3, 2), "b": (2,)},
            r"fisher of m has shape \(3, 2\), the tensor has \(2, 3\)",
        ),
        ("gram", {"b": (2,)}, "a gram of 'b', which is no matrix"),
        ("gram", {"m,m": (3,)}, "or has one already"),
        ("gram-full", {"m": (3,)}, r"gram-full of m has shape \(3,\), expected \(6,\)"),
        ("gram", {"m": (3, 3)}, r"gram of m has shape \(3, 3\), expected \(3,\)"),
    ],
)
def test_a_statistic_of_another_form_is_refused(kind, given, said) -> None:
    with pytest.raises(Refused, match=said):
        forms.check_form(kind, {key: (FLOAT, shape) for key, shape in given.items()}, BODY)


def test_what_no_statistic_can_be_is_refused() -> None:
    good = torch.tensor([1.0, -1.5, 0, 3, 0, 5])
    forms.check_values("gram", "m", good, BODY)
    assert forms.diagonal(good, 3).tolist() == [1, 3, 5]
    assert forms.unpack(good, 3).tolist() == [[1, -1.5, 0], [-1.5, 3, 0], [0, 0, 5]]
    assert torch.equal(forms.pack(forms.unpack(good, 3)), good)
    large = torch.tensor([1.0, -2, 0, 3, 0, 5])  # 2 * 2 > 1 * 3
    for tensor, said in (
        (-good, "negative square"),
        (good / 0, "NaN or infinity"),
        (large, "is no Gram matrix"),
    ):
        with pytest.raises(Refused, match=said):
            forms.check_values("gram", "m", tensor, BODY)
    with pytest.raises(Refused, match="fisher of b holds a negative square"):
        forms.check_values("fisher", "b", torch.tensor([1.0, -1e-9]), BODY)


@pytest.mark.parametrize("rule", ["fisher", "regmean"])
def test_it_travels_by_message_and_by_reference_and_through_a_resume(
    rule, in_process, tmp_path
) -> None:
    chosen = ["--set", f"fusion.rule={rule}", "--set", "fusion.clip=median"]
    simulate(tmp_path, "run", *chosen)
    simulate(tmp_path, "ref", *chosen, "--set", "transport=shared-dir", "--set", "iterations=1")
    simulate(tmp_path, "ref", *chosen, "--set", "transport=shared-dir", "--resume")
    simulate(tmp_path, "plain", "--set", "iterations=1")
    runs = [tmp_path / name for name in ("run", "ref", "plain")]
    bases = [[body_file(run, i) for i in range(3)] for run in runs[:2]]
    assert bases[0] == bases[1]
    assert body_file(runs[2], 1) != bases[0][1]
    # What is known of a body does not depend on what came beside it.
    mine, plain = (
        {
            r["contributor"]: r["sha256"]
            for r in rows(run, "contributions.jsonl")
            if r["iteration"] == 1
        }
        for run in (runs[0], runs[2])
    )
    assert mine == plain
    given = Repository(runs[0]).manifest(1)["contributors"]
    assert all(row["statistic-seconds"] > 0 for row in given)


def ask(path, body, kind: str):
    config = ConfigRecord({"iteration": 3, "run": "r", "base": "b", "statistic": kind})
    return send(MessageType.TRAIN, {"arrays": body, "config": config}, path)


OWN = """
def silent(job):
    return job.body, {}

def own(job):
    found = {f"fisher.{k}": t.square() for k, t in job.body.items()} if job.statistic else {}
    return {**job.body, **found}, {}
"""


def test_a_site_decides_what_leaves(site, arrays, own_home, tmp_path) -> None:  # noqa: F811
    said = "LimitError: the run's fusion rule asks for a statistic of the data, fisher, which this "
    refused = ask(site(), arrays, "fisher")
    assert str(refused.error.reason).startswith(said + "site does not let leave; statistics = ")
    assert str(ask(site('statistics = "gram"'), arrays, "fisher").error.reason).startswith(said)
    allowed = site('statistics = "fisher, gram"')
    answer = ask(allowed, arrays, "fisher")
    asked = ConfigRecord({"statistic": "fisher", "base": "b"})
    received = RecordDict({"arrays": arrays, "config": asked})
    Egress("clinic-a", statistics=["fisher"]).check("train", answer.content, received)
    for known in ((), ("gram",)):
        with pytest.raises(SiteError, match="a statistic, fisher, which site.toml does not name"):
            Egress("clinic-a", statistics=known).check("train", answer.content, received)
    record = answer.content.array_records["arrays"]
    assert len(record) == 2 * len(arrays)
    row = log(own_home)[-1]
    assert row["statistic"] == "fisher"
    body = {name: record[name] for name in arrays}
    assert row["sha256"] == fingerprint(records.unpack(ArrayRecord(body)))
    (tmp_path / "own_statistic.py").write_text(OWN)
    top = 'statistics = "fisher"\ntrainer = "own_statistic:{}"'
    silent = ask(site(top.format("silent")), arrays, "fisher")
    assert silent.has_error()
    assert "it sent no fisher statistic" in (own_home / "clinic-a" / "errors.log").read_text()
    assert not ask(site(top.format("own")), arrays, "fisher").has_error()
    with pytest.raises(SiteError, match="Did you mean 'fisher'"):
        load_site(site('statistics = "fischer"'))


def looked_at(me, body, kind, monkeypatch) -> list[Encoded]:
    """Return the rows that a statistic looks at, for each of two seeds of the coordinator's."""
    seen: list[Encoded] = []
    found = {"fisher": statistics._fisher, "gram": statistics._gram}[kind]

    def watched(model, data, *more, **named):
        seen.append(data)
        return found(model, data.take([0]), *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(statistics, f"_{kind}", watched)
        patch.setattr(statistics, "EXAMPLES", {"fisher": 15, "gram": 15})
        for seed in (1, 2):
            me.finetune(body, iteration=seed, seed=seed, statistic=kind)
    return seen


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_at_a_site_the_rows_are_its_own_and_no_fewer_than_its_minimum(
    site,  # noqa: F811
    tiny,
    monkeypatch,
    kind,
) -> None:
    mine, body = load_site(site('statistics = "fisher, gram"')), starting_model(tiny, seed=0)[1]
    run = {"finetune.max-epochs": 1, "finetune.precision": "fp32", "seed": 5}
    one, other = looked_at(Contributor(Config.from_flat(run), site=mine), body, kind, monkeypatch)
    assert len(one) == len(other) == 100  # limits.min-examples, of 144; usual were 15
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.labels, other.labels)
    simulated = looked_at(Contributor(Config.from_flat(RUN)), body, kind, monkeypatch)
    assert [len(rows) for rows in simulated] == [15, 15]
    assert not torch.equal(simulated[0].ids, simulated[1].ids)
    with pytest.raises(LimitError, match="fewer than limits.min-examples = 100 examples to train"):
        mine.looked_at(1, 99)


def test_a_gram_reads_no_more_than_a_micro_batch(tiny) -> None:
    _, data, _, model = task(tiny)
    sizes = []
    model.register_forward_pre_hook(
        lambda _, args, given: sizes.append(len(given["input_ids"])), with_kwargs=True
    )
    for micro, largest in ((0, 16), (5, 5), (99, 16)):
        statistic("gram", model, data.train, regression=False, seed=0, micro_batch_size=micro)
        assert max(sizes) == largest
        sizes.clear()


@pytest.mark.parametrize("transport", ["message", "shared-dir"])
def test_a_body_is_found_again_with_its_own_sha256(tmp_path, transport) -> None:
    """After a stop: what came beside it is no part of its identity."""
    body = {"m": torch.ones(2, 3), "b": torch.zeros(2)}
    stated = Contribution(
        "ann", metrics={"num-examples": 9}, statistic="fisher", start=Start(1, "b")
    )
    whole = {**body, **{forms.prefix("fisher") + key: tensor**2 for key, tensor in body.items()}}
    form, store = Weights(whole).template(), Store(tmp_path, 1)
    store.open()
    if transport == "message":
        came = store.put(stated, whole.items(), form)
    else:
        xxh3 = store.offer(stated, whole)
        came = store.take(stated, Weights(body).template(), store, xxh3)
    assert came.sha256 == fingerprint(body.items())
    assert store.find("ann", {"b"}) == came
