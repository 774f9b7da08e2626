"""Kept heads: stored by iteration, read from the one before, never outside their folder."""

import pytest
import torch

from cold_flower.errors import ModelError
from cold_flower.models.classifier import classifier
from cold_flower.models.heads import Heads, head_of
from cold_flower.models.starting import starting_model
from strategies.fusion import fingerprint
from tests.test_client_app import RUN, Config, Contributor


@pytest.fixture(scope="module")
def body(tiny):
    return starting_model(tiny, seed=0)[1]


def make(tiny, body, seed, labels=("a", "b", "c")):
    return classifier(tiny, body, labels=labels, kind="classification", seed=seed)


def same(a, b) -> bool:
    return fingerprint(head_of(a).items()) == fingerprint(head_of(b).items())


def test_an_iteration_begins_with_the_newest_head_from_before_it(tiny, body, tmp_path) -> None:
    heads = Heads(tmp_path, "run")
    trained = {i: make(tiny, body, i) for i in (1, 3)}
    for iteration, model in trained.items():
        heads.save(iteration, model)
    for iteration, origin in ((1, None), (2, 1), (3, 1), (4, 3), (9, 3)):
        model = make(tiny, body, 77)
        heads.load_into(model, iteration)
        assert same(model, trained.get(origin, make(tiny, body, 77)))
        assert torch.equal(model.base_model.state_dict()[k := next(iter(body))], body[k])
    # 3 was left behind by a rollback to 2.
    heads.load_into(model := make(tiny, body, 77), 4, abandoned=[3])
    assert same(model, trained[1])


def test_runs_do_not_share_heads_and_names_from_the_wire_stay_inside(tiny, body, tmp_path) -> None:
    Heads(tmp_path / "own", "../../outside").save(1, make(tiny, body, 1))
    Heads(tmp_path / "own", "other").load_into(model := make(tiny, body, 2), 5)
    assert same(model, make(tiny, body, 2))
    assert [p.name for p in tmp_path.iterdir()] == ["own"]


def test_a_head_of_another_shape_is_named(tiny, body, tmp_path) -> None:
    Heads(tmp_path, "run").save(1, make(tiny, body, 1, labels=("a", "b")))
    with pytest.raises(ModelError, match="0001.safetensors does not fit.*finetune.head = fresh"):
        Heads(tmp_path, "run").load_into(make(tiny, body, 1), 2)


def test_a_contributor_keeps_its_head_only_if_it_is_to(body, own_home) -> None:
    def heads(kind):
        config = Config.from_flat({**RUN, "finetune.head": kind})
        moved, results = body, []
        for iteration in (1, 2):
            result = Contributor(config, 0).finetune(moved, iteration=iteration, seed=0, run=kind)
            results.append(fingerprint(result[0].items()))
        return results, sorted(p.name for p in own_home.rglob("heads/*/*"))

    fresh, stored = heads("fresh")
    assert stored == []
    kept, stored = heads("keep")
    assert stored == ["0001.safetensors", "0002.safetensors"]
    assert kept[0] == fresh[0]
    assert kept[1] != fresh[1]
    assert heads("keep")[0] == kept  # repeated, each begins with the same head as before
