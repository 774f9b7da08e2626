"""The versioned store of bases."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from cold_flower.errors import RunError
from cold_flower.repository.bases import STATE, Repository
from cold_flower.server.manifest import accepted_norms
from strategies.fusion import Weights, fingerprint

BODY = {"w": torch.zeros(2, 2), "b": torch.ones(2)}
START = {"net.w": torch.zeros(2, 2), "net.b": torch.ones(2), "head": torch.tensor([9.0])}


def save(folder) -> None:
    save_file(START, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


@pytest.fixture
def repository(tmp_path):
    repository = Repository(tmp_path)
    repository.create(save, BODY, "net.", {"note": "start"})
    return repository


def moved(by):
    return {k: t + by for k, t in BODY.items()}


def test_lineage_and_latest(repository) -> None:
    assert repository.latest() == 0
    repository.publish(1, 0, Weights(moved(1)), {"rule": "average"})
    repository.publish(2, 1, Weights(moved(2)), {"rule": "average"})
    assert repository.latest() == 2
    assert os.readlink(repository.folder / "latest") == "0002"
    assert [repository.manifest(i)["parent"] for i in range(3)] == [None, 0, 1]
    assert fingerprint(repository.body(1).items()) == fingerprint(moved(1).items())
    for iteration, body in enumerate((BODY, moved(1), moved(2))):
        assert repository.manifest(iteration)["sha256"] == fingerprint(body.items())
    kept = load_file(repository.path(2) / "model.safetensors")
    assert kept.keys() == START.keys()
    assert kept["head"].item() == 9.0
    assert (repository.path(2) / "config.json").exists()


def test_what_is_measured_while_the_disk_writes_is_in_the_manifest(repository) -> None:
    repository.publish(1, 0, Weights(moved(1)), {"rule": "x"}, further=lambda: {"length": 2.0})
    assert {"rule": "x", "length": 2.0}.items() <= repository.manifest(1).items()

    def fails():
        raise RuntimeError("not measured")

    with pytest.raises(RuntimeError, match="not measured"):
        repository.publish(2, 1, Weights(moved(2)), {}, further=fails)
    assert (repository.latest(), repository.numbers()) == (1, [0, 1])


def test_a_body_tensor_that_the_checkpoint_lacks_is_added(tmp_path) -> None:
    repository = Repository(tmp_path)
    repository.create(save, {**BODY, "pooler": torch.zeros(1)}, "net.", {})
    assert load_file(repository.path(0) / "model.safetensors").keys() == {*START, "net.pooler"}
    assert repository.body(0).keys() == ["w", "b", "pooler"]


def test_nothing_is_ever_half_visible(repository) -> None:
    class Broken(dict):
        def __getitem__(self, name):
            if name == "b":
                raise OSError(28, "No space left on device")
            return super().__getitem__(name)

    with pytest.raises(OSError, match="No space left"):
        repository.publish(1, 0, Weights(Broken(BODY)), {})
    assert sorted(p.name for p in repository.folder.iterdir()) == ["0000", "latest"]
    assert repository.latest() == 0


def test_tensors_are_matched_by_name(repository) -> None:
    """Flower's FedAvg returns them in another order."""
    backwards = dict(reversed(moved(1).items()))
    repository.publish(1, 0, Weights(backwards), {})
    assert fingerprint(repository.body(1).items()) == fingerprint(moved(1).items())


def test_a_number_is_used_once(repository) -> None:
    repository.publish(1, 0, Weights(moved(1)), {})
    with pytest.raises(RunError, match="iteration 1 exists"):
        repository.publish(1, 0, Weights(moved(2)), {})


def test_a_publish_cut_off_before_latest_moved_is_finished(repository) -> None:
    repository.publish(1, 0, Weights(moved(1)), {})
    link = repository.folder / "latest"
    link.unlink()
    link.symlink_to("0000")
    assert repository.recover() == 1
    assert repository.latest() == 1


def test_a_start_cut_off_before_latest_was_made_is_finished(repository) -> None:
    (repository.folder / "latest").unlink()
    assert repository.recover() == 0


def test_an_iteration_that_is_not_there(repository) -> None:
    with pytest.raises(RunError, match="no iteration 7 .*there: 0$"):
        repository.manifest(7)


def grown(repository, count: int) -> None:
    for i in range(1, count + 1):
        repository.publish(i, i - 1, Weights(moved(i)), {})


def test_a_rollback_deletes_nothing_and_uses_no_number_twice(repository) -> None:
    grown(repository, 3)
    repository.rollback(1)
    assert repository.latest() == 1
    assert repository.lineage() == [0, 1]
    assert repository.numbers() == [0, 1, 2, 3]
    repository.publish(4, 1, Weights(moved(4)), {})
    assert repository.lineage() == [0, 1, 4]
    assert (repository.path(3) / "model.safetensors").exists()
    assert [(r["from"], r["to"], r["newest"]) for r in repository.rollbacks()] == [(3, 1, 3)]


def test_a_rollback_is_written_down_before_it_is_done(repository, monkeypatch) -> None:
    """Else a crash in between would leave a head that `recover` moves on again."""

    def full(*_):
        raise OSError("no space left")

    grown(repository, 3)
    monkeypatch.setattr("cold_flower.repository.journal.Journal.append", full)
    with pytest.raises(OSError, match="no space"):
        repository.rollback(2)
    assert repository.latest() == 3


def test_what_was_rolled_back_is_not_taken_for_a_publish_that_was_cut_off(repository) -> None:
    grown(repository, 2)
    repository.rollback(1)
    assert repository.recover() == 1
    repository.publish(3, 1, Weights(moved(3)), {})
    (repository.folder / "latest").unlink()
    (repository.folder / "latest").symlink_to("0001")
    assert repository.recover() == 3


def test_the_rule_s_memory_is_of_the_last_base_that_was_accepted(repository, tmp_path) -> None:
    rejected = {"gate": {"accepted": False, "reason": "worse"}}
    repository.publish(1, 0, Weights(BODY), rejected)
    assert repository.state() is None  # as at the start
    memory = tmp_path / "state"
    memory.write_bytes(b"x")
    repository.publish(2, 1, Weights(moved(2)), {"gate": {"accepted": True}}, state=memory)
    repository.publish(3, 2, Weights(moved(2)), rejected, state=repository.state())
    assert repository.state() == repository.path(3) / STATE
    assert repository.state().read_bytes() == b"x"
    repository.publish(4, 3, Weights(moved(4)), {})
    assert repository.state() == repository.path(4) / STATE  # lost: who reads it says so


def test_old_iterations_keep_their_manifest(repository) -> None:
    grown(repository, 4)
    repository.prune(2)
    have_weights = [(repository.path(i) / "model.safetensors").exists() for i in range(5)]
    assert have_weights == [True, False, False, True, True]
    assert repository.lineage() == [0, 1, 2, 3, 4]
    with pytest.raises(RunError, match="iteration 1 has no weights any more"):
        repository.rollback(1)
    with pytest.raises(RunError, match="no iteration 9 .*there: 0, 1, 2, 3, 4"):
        repository.rollback(9)
    assert repository.latest() == 4


def test_after_a_rollback_the_lineage_stays_whole_too(repository) -> None:
    """Of the newest numbers some may be left behind, and some be what the gate rejected."""
    grown(repository, 4)
    repository.rollback(3)
    rejected = {"gate": {"accepted": False, "reason": "worse"}}
    repository.publish(5, 3, Weights(moved(3)), rejected)
    repository.publish(6, 5, Weights(moved(6)), {})
    assert repository.newest(2) == [6, 3]
    repository.prune(2)
    have_weights = [i for i in range(7) if (repository.path(i) / "model.safetensors").exists()]
    assert have_weights == [0, 3, 5, 6]


def test_what_is_cut_off_while_it_is_deleted_is_not_taken_for_whole(
    repository, monkeypatch
) -> None:
    def killed(*_, **__):
        raise KeyboardInterrupt

    grown(repository, 2)
    monkeypatch.setattr("cold_flower.repository.bases.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        repository.prune(1)
    with pytest.raises(RunError, match="iteration 1 has no weights any more"):
        repository.rollback(1)


def test_the_manifest_is_json(repository) -> None:
    text = (repository.path(0) / "manifest.json").read_text()
    assert json.loads(text)["note"] == "start"


def test_the_norms_that_screening_compares_are_of_what_was_fused(repository) -> None:
    """Along the lineage: not of a refused contribution, a rejected iteration, or one left behind."""

    def part(name: str, norm: float, verdict: str = "accepted") -> dict:
        return {"name": name, "verdict": verdict, "diff-norm": norm}

    manifests = [
        {"contributors": [part("ann", 1.0), part("bob", 2.0)]},
        {"contributors": [part("ann", 3.0), part("bob", 9.0, "refused")]},
        {"contributors": [part("ann", 50.0)], "gate": {"accepted": False}},
    ]
    grown(repository, 0)
    for iteration, manifest in enumerate(manifests, start=1):
        repository.publish(iteration, iteration - 1, Weights(moved(iteration)), manifest)
    assert accepted_norms(repository) == {"ann": [1.0, 3.0], "bob": [2.0]}
    repository.rollback(1)
    assert accepted_norms(repository) == {"ann": [1.0], "bob": [2.0]}
