"""Contributions that are kept, and a contributor that leaves, on a body of six numbers."""

import json
from dataclasses import replace

import pytest
import torch

import cold_flower
from cold_flower.commands import history
from cold_flower.config import Config
from cold_flower.errors import RunError
from cold_flower.repository import leaving
from cold_flower.repository.bases import STATE, Repository
from cold_flower.repository.dropbox import Dropbox, Stated
from cold_flower.repository.journal import LEFT, Journal
from cold_flower.repository.kept import Kept
from cold_flower.server.manifest import contribution_rows
from cold_flower.server.replay import Replay
from strategies.contributions import INCOMING, Contribution, Start, Store
from strategies.fusion import Weights, fingerprint
from tests.conftest import held
from tests.test_repository import BODY, save

NAMES = ("music", "travel", "cinema", "garden")
KEYS = {"tasks": ",".join(NAMES), "contributors-per-iteration": 0, "keep-contributions": 9}


def config_of(**keys) -> Config:
    return Config.from_flat({**KEYS, **keys})


def given(iteration: int, base: dict) -> dict[str, dict]:
    """What each makes of a base: a step of its own, as a finetuning's, not round in binary."""
    found = {}
    for name in NAMES:
        generator = torch.Generator().manual_seed(NAMES.index(name) + 10 * iteration)
        found[name] = {
            k: t + 0.1 * torch.randn(t.shape, generator=generator) for k, t in base.items()
        }
    return found


def publish(run_dir, config, iteration: int, bodies: dict[str, dict], gate=None, begun=None):
    """What a round does: bodies into the inbox, fused, published, kept; ``begun``: their base."""
    replay, store = Replay(config, run_dir), Store(run_dir / INCOMING, iteration)
    repository = replay.repository
    parent = repository.latest()
    sha256 = repository.sha256(parent if begun is None else begun)
    store.open()
    ones = [
        store.put(
            Contribution(
                name, metrics={"num-examples": 5.0}, start=Start(iteration, sha256)
            ), body.items(), Weights(body).template(),
        )
        for name, body in bodies.items()
    ]  # fmt: skip
    state = store.state
    fused = replay.fuse(parent, [one.weights() for one in ones], state, iteration)
    if gate and not gate["accepted"]:
        fused = dict(repository.body(parent).items())
    rows = [
        {"name": o.name, "verdict": "accepted", "sha256": o.sha256, "diff-norm": 1.0} for o in ones
    ]
    about = {"rule": config.fusion.rule, "contributors": rows, **({"gate": gate} if gate else {})}
    there = state if state.exists() else None
    repository.publish(iteration, parent, Weights(fused), about, state=there)
    Kept(run_dir).take(iteration, config.keep_contributions)
    store.clear()


def start(run_dir, config: Config) -> None:
    journal = Journal(run_dir)
    journal.open(config, {})
    journal.unlock()
    Repository(run_dir).create(save, BODY, "net.", {"base-model": "tiny"})


def body(run_dir, iteration=None) -> dict[str, torch.Tensor]:
    repository = Repository(run_dir)
    return dict(repository.body(repository.latest() if iteration is None else iteration).items())


def grown(run_dir, config: Config, iterations=3, absent=(), gone=()) -> None:
    """A run in which ``absent[i]`` are not asked in iteration i, and ``gone`` never are."""
    start(run_dir, config)
    for iteration in range(1, iterations + 1):
        bodies = given(iteration, body(run_dir))
        away = {*gone, *dict(absent).get(iteration, ())}
        publish(run_dir, config, iteration, {n: b for n, b in bodies.items() if n not in away})


def leave(run_dir, name) -> list[str]:
    """Have somebody leave; return what is said."""
    said: list[str] = []
    cold_flower.leave(run_dir, name, say=said.append)
    return said


def manifest(run_dir, iteration):
    return Repository(run_dir).manifest(iteration)


def test_files_are_moved_as_they_are_and_the_newest_stay(tmp_path) -> None:
    config = config_of(**{"keep-contributions": 2})
    grown(tmp_path / "run", config)
    kept, repository = Kept(tmp_path / "run"), Repository(tmp_path / "run")
    assert kept.numbers() == [2, 3]
    files = sorted(path.name for path in (kept.folder / "0003").iterdir())
    assert files == sorted(f"{n}.{kind}" for n in NAMES for kind in ("safetensors", "sha256"))
    rows = {row["name"]: row["sha256"] for row in repository.manifest(3)["contributors"]}
    for one in kept.contributions(3):
        assert one.sha256 == rows[one.name] == fingerprint(one.weights().items())
        assert one.metrics == {"num-examples": 5.0}
    with pytest.raises(
        RunError, match=r"iteration 1 are not kept \(keep-contributions is 2; kept: 2, 3"
    ):
        kept.contributions(1)
    file = kept.folder / "0003" / "music.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    with pytest.raises(RunError, match=r"made from no base of this run: music"):
        kept.contributions(3)


def test_a_move_that_a_crash_cut_off_is_finished(tmp_path) -> None:
    config = config_of()
    grown(tmp_path / "run", config, 1)
    kept, store = Kept(tmp_path / "run"), tmp_path / "run" / INCOMING / "0001"
    store.mkdir(parents=True)
    here = kept.folder / "0001"
    (here / "music.sha256").rename(store / "music.sha256")
    for kind in ("safetensors", "sha256"):
        (here / f"travel.{kind}").rename(store / f"travel.{kind}")
    kept.take(1, 9)
    assert len(kept.contributions(1)) == len(NAMES)
    kept.take(1, 9)  # as a resumed run does
    assert len(kept.contributions(1)) == len(NAMES)
    assert list(store.iterdir()) == []


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"fusion.rule": "ties", "fusion.momentum": 0.5},
        {"fusion.rule": "dare", "seed": 3, "fusion.clip": "median"},
        {"fusion.optimizer": "adam", "fusion.anchor": 0.1},
    ],
    ids=str,
)
def test_from_the_first_fuse_it_is_as_if_it_had_never_been_there(tmp_path, keys) -> None:
    """It joined in iteration 2: so 1, and the memory beside it, stay as they are."""
    config = config_of(**keys)
    without = {1: ("music",), 2: ("music",)}
    grown(tmp_path / "run", config, 2, absent={1: ("music",)})
    grown(tmp_path / "other", config, 2, absent=without)
    (*_, told, _, _) = leave(tmp_path / "run", "music")
    assert told == "iteration 2 without music is 0003, from 0001: exact"
    run, other = tmp_path / "run", tmp_path / "other"
    assert manifest(run, 3)["sha256"] == manifest(other, 2)["sha256"] != manifest(run, 2)["sha256"]
    assert manifest(run, 3)["replay"] == {"of": 2, "without": "music", "exact": True}
    states = [Repository(r).path(i) / STATE for r, i in ((run, 3), (other, 2))]
    assert (
        states[0].exists()
        == states[1].exists()
        == ("fusion.rule" in keys or bool(keys)) - ("fusion.clip" in keys)
    )
    if states[0].exists():
        assert states[0].read_bytes() == states[1].read_bytes()
    assert Repository(run).lineage() == [0, 1, 3]
    assert not (run / INCOMING).exists()


def test_the_memory_of_the_parent_goes_on(tmp_path) -> None:
    """v = momentum * v + d, by hand: v of the first iteration is what it moved the base by."""
    run = tmp_path / "run"
    grown(run, config_of(**{"fusion.momentum": 0.5}), 2, absent={1: ("music",)})
    first, before = body(run, 1), body(run, 0)
    leave(run, "music")
    made = given(2, first)
    for key, tensor in body(run, 3).items():
        step = sum(made[name][key] - first[key] for name in NAMES if name != "music") / 3
        torch.testing.assert_close(tensor, first[key] + 0.5 * (first[key] - before[key]) + step)


def test_afterwards_the_others_differences_stand_on_the_new_base(tmp_path) -> None:
    run, config = tmp_path / "run", config_of()
    grown(run, config)
    before = {i: body(run, i) for i in range(4)}
    said = leave(run, "music")
    assert said[1:4] == [
        "iteration 1 without music is 0004, from 0000: exact",
        *(
            f"iteration {i} without music is 000{i + 3}, from 000{i + 2}: an approximation: the "
            "others had finetuned from a base that held its contribution"
            for i in (2, 3)
        ),
    ]
    assert [manifest(run, i)["replay"]["exact"] for i in (4, 5, 6)] == [True, False, False]
    here = before[0]
    for old, new in ((1, 4), (2, 5), (3, 6)):
        made = given(old, before[old - 1])
        steps = [
            {k: t - before[old - 1][k] for k, t in made[name].items()}
            for name in sorted(NAMES)
            if name != "music"
        ]
        here = {k: t + sum(step[k] for step in steps) / 3 for k, t in here.items()}
        for key, tensor in body(run, new).items():
            torch.testing.assert_close(tensor, here[key])
    row = {r["name"]: r["verdict"] for r in manifest(run, 5)["contributors"]}
    assert row == {
        "cinema": "accepted",
        "garden": "accepted",
        "travel": "accepted",
        "music": "refused",
    }
    assert contribution_rows(manifest(run, 5)) == []  # they came once
    assert "replays 0002 without music (an approximation)" in "\n".join(history.log(run))


def test_a_second_one_leaves_what_the_first_one_left(tmp_path) -> None:
    """The replay of a replay goes back to what was contributed; its first fuse is exact again."""
    run, other, config = tmp_path / "run", tmp_path / "other", config_of()
    grown(run, config, 2)
    grown(other, config, 1, gone=("music", "garden"))
    leave(run, "music")
    said = leave(run, "garden")
    assert said[1] == "iteration 3 without garden is 0005, from 0000: exact"
    assert manifest(run, 5)["sha256"] == manifest(other, 1)["sha256"]
    assert Kept(run).origin(6) == 2
    assert [row["contributor"] for row in Journal(run).rows(LEFT)] == ["music", "garden"]


def test_what_is_not_kept_is_said_and_nothing_is_replayed(tmp_path) -> None:
    run = tmp_path / "run"
    grown(run, config_of(**{"keep-contributions": 2}))
    said = leave(run, "music")
    assert said == [
        f"music left {run}: it is refused from now on, and its task is not scored",
        "iteration 1 cannot be replayed: the contributions of iteration 1 are not kept "
        "(keep-contributions is 2; kept: 2, 3)",
        "nothing is replayed: the bases from iteration 1 on still hold what it contributed",
    ]
    assert Repository(run).numbers() == [0, 1, 2, 3]
    assert Repository(run).latest() == 3
    assert Journal(run).left() == ["music"]
    with pytest.raises(RunError, match="music left .* already"):
        leave(run, "music")


def test_who_left_before_is_not_in_a_replay_either(tmp_path) -> None:
    """Nothing could be replayed for the first one; in what is replayed now it is left out, too."""
    run = tmp_path / "run"
    grown(run, config_of(**{"keep-contributions": 2}), absent={1: ("garden",)})
    leave(run, "music")
    leave(run, "garden")
    for number in (4, 5):
        verdicts = {row["name"]: row["verdict"] for row in manifest(run, number)["contributors"]}
        assert {n for n, verdict in verdicts.items() if verdict == "refused"} == {"music", "garden"}
    assert Repository(run).lineage() == [0, 1, 4, 5]


def test_bases_that_were_deleted_cannot_be_replayed_from(tmp_path) -> None:
    run = tmp_path / "run"
    grown(run, config_of())
    Repository(run).prune(1)
    said = leave(run, "music")
    assert "iteration 2 cannot be replayed: iteration 1 has no weights any more" in said[1]
    assert Repository(run).latest() == 3


def test_bases_that_old_contributions_began_from_are_asked_for_before_anything_moves(
    tmp_path,
) -> None:
    run, config = tmp_path / "run", config_of()
    grown(run, config, 2)
    publish(run, config, 3, given(3, body(run, 1)), begun=1)
    publish(run, config, 4, given(4, body(run)))
    repository = Repository(run)
    (repository.path(1) / "model.safetensors").unlink()
    (run / "contributions" / "0001" / "music.safetensors").unlink()
    for number in (1, 2):  # so that music is in 3 and 4 alone
        path = repository.path(number) / "manifest.json"
        path.write_text(path.read_text().replace('"music"', '"lizzy"'))
    said = leave(run, "music")
    assert "iteration 3 cannot be replayed: iteration 1 has no weights any more" in said[1]
    assert repository.latest() == 4


def test_who_comes_back_by_a_rollback_can_leave_again(tmp_path) -> None:
    run = tmp_path / "run"
    grown(run, config_of())
    leave(run, "music")
    assert Repository(run).lineage() == [0, 4, 5, 6]
    assert "holds what music gave before leaving" in history.rollback(run, 3)
    leave(run, "music")
    assert Repository(run).lineage() == [0, 7, 8, 9]
    for number in (7, 8, 9):
        assert Repository(run).sha256(number) == Repository(run).sha256(number - 3)
    with pytest.raises(RunError, match="music left .* already"):
        leave(run, "music")


def test_of_a_baseline_it_is_said_that_its_bases_hold_the_data(tmp_path) -> None:
    run = tmp_path / "run"
    start(run, config_of(baseline="multitask", iterations=1))
    Repository(run).publish(1, 0, Weights(BODY), {"rule": "multitask"})
    said = leave(run, "music")[1]
    assert said == "the bases after the start were trained on its data, too: nothing is replayed"


def test_who_took_part_in_nothing_is_only_refused(tmp_path) -> None:
    run = tmp_path / "run"
    grown(run, config_of(), 1, gone=("music",))
    inbox = run / INCOMING / "0002"
    inbox.mkdir(parents=True)  # what had arrived stays good
    assert leave(run, "music")[1] == (
        "it took part in no iteration of the lineage: there is nothing to replay"
    )
    assert inbox.exists()
    assert Repository(run).latest() == 1


def test_what_the_gate_rejected_holds_nothing(tmp_path) -> None:
    run, config = tmp_path / "run", config_of()
    start(run, config)
    publish(run, config, 1, given(1, BODY), {"accepted": False, "reason": "worse"})
    publish(run, config, 2, {"travel": given(2, BODY)["travel"]})
    said = leave(run, "music")
    assert "nothing to replay" in said[1]


def test_an_iteration_of_its_contribution_alone_falls_away(tmp_path) -> None:
    run, config = tmp_path / "run", config_of()
    start(run, config)
    publish(run, config, 1, {"music": given(1, BODY)["music"]})
    publish(run, config, 2, given(2, body(run)))
    said = leave(run, "music")
    assert "made of its contribution alone, and left out: iteration 1" in said
    assert Repository(run).lineage() == [0, 3]
    assert manifest(run, 3)["replay"] == {"of": 2, "without": "music", "exact": False}


def test_too_few_for_the_rule(tmp_path) -> None:
    keys = {"fusion.rule": "krum", "fusion.options": "{byzantine = 0}", "quorum": 4}
    run, config = tmp_path / "run", config_of(**keys)
    start(run, config)
    publish(run, config, 1, {n: b for n, b in given(1, BODY).items() if n != "garden"})
    said = leave(run, "music")
    assert said[1] == "iteration 1 cannot be replayed: krum needs 3 contributions, 2 remain"
    assert said[-1] == "WARNING: this run cannot go on: 3 contributors stay, of 4 (quorum)"


@pytest.mark.parametrize("after", [0, 1])
def test_a_replay_that_was_stopped_goes_on(tmp_path, monkeypatch, after) -> None:
    config = config_of()
    grown(tmp_path / "whole", config)
    grown(tmp_path / "run", config)
    publishing, count = Repository.publish, []

    def killed(self, *args, **kwargs):
        count.append(1)
        if len(count) > after:
            raise KeyboardInterrupt
        publishing(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Repository, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            leave(tmp_path / "run", "music")
    with pytest.raises(
        RunError,
        match=rf"music was leaving, .* before iteration {after + 1} was made again. It has to end "
        r"first: cold-flower leave \S+run music$",
    ):
        leaving.check(Journal(tmp_path / "run"), Repository(tmp_path / "run"))
    said = leave(tmp_path / "run", "music")
    assert said[0].startswith(f"iteration {after + 1} without music")
    leave(tmp_path / "whole", "music")
    run, whole = (Repository(tmp_path / name) for name in ("run", "whole"))
    assert run.lineage() == whole.lineage() == [0, 4, 5, 6]
    assert [run.manifest(i)["sha256"] for i in (4, 5, 6)] == [
        whole.manifest(i)["sha256"] for i in (4, 5, 6)
    ]
    with pytest.raises(RunError, match="already"):
        leave(tmp_path / "run", "music")
    for latest in (6, 3):  # also where a rollback brings back what it gave
        history.rollback(tmp_path / "run", latest)
        leaving.check(Journal(tmp_path / "run"), Repository(tmp_path / "run"))


def test_a_run_that_went_on_from_half_a_replay_is_left_alone(tmp_path, monkeypatch) -> None:
    run, config = tmp_path / "run", config_of()
    grown(run, config)
    with monkeypatch.context() as patch:
        patch.setattr(Replay, "publish", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            leave(run, "music")
    assert Repository(run).latest() == 0
    publish(run, config, 4, {"travel": given(4, BODY)["travel"]})
    with pytest.raises(
        RunError, match="its replay was stopped before iteration 1, and the run went"
    ):
        leave(run, "music")
    leaving.check(Journal(run), Repository(run))


def test_after_half_a_replay_nobody_else_leaves_and_a_rollback_begins_it_anew(
    tmp_path, monkeypatch
) -> None:
    run, config = tmp_path / "run", config_of()
    grown(run, config)
    once = [Replay.publish]
    with monkeypatch.context() as patch:
        patch.setattr(Replay, "publish", lambda *a: once.pop()(*a))
        with pytest.raises(IndexError):
            leave(run, "music")
    assert Repository(run).lineage() == [0, 4]
    with pytest.raises(RunError, match="music was leaving, .* before iteration 2 was made again"):
        leave(run, "travel")  # its replay would know nothing of 2 and 3
    history.rollback(run, 3)
    leave(run, "music")
    assert Repository(run).lineage() == [0, 5, 6, 7]
    assert [manifest(run, i)["replay"]["of"] for i in (5, 6, 7)] == [1, 2, 3]


def test_a_run_without_a_base_has_nobody_who_leaves_it(tmp_path) -> None:
    journal = Journal(tmp_path / "run")
    journal.open(config_of(), {})
    journal.unlock()
    with pytest.raises(RunError, match="unknown contributor"):
        leave(tmp_path / "run", "musik")


def test_what_a_crash_left_in_the_inbox_is_kept_before_it_is_replayed(tmp_path) -> None:
    run, config = tmp_path / "run", config_of()
    grown(run, config)
    kept = Kept(run).folder / "0003"  # published, and its bodies not moved yet
    kept.rename(run / INCOMING / "0003")
    said = leave(run, "music")
    assert [line[:21] for line in said if line.startswith("iteration")] == [
        f"iteration {i} without m" for i in (1, 2, 3)
    ]


def test_a_model_that_was_taken_for_the_next_iteration_waits_again(tmp_path) -> None:
    """Its number is a replay's now: nobody would take it any more."""
    run, config = tmp_path / "run", config_of()
    grown(run, config)
    box = Dropbox(run / "dropbox")
    for name in ("ann", "bob", "music"):
        box.put(name, {}, Stated())
    box.take("bob", 3)  # it was fused
    for name in ("ann", "music"):
        box.take(name, 4)
    assert "drop box: ann was taken for what was being made, and waits again" in leave(run, "music")
    assert (box.waiting()[0], [*box.taken(3)]) == (["ann"], ["bob"])


def test_what_is_refused_by_name(tmp_path) -> None:
    run = tmp_path / "run"
    grown(run, config_of(), 1)
    with pytest.raises(RunError, match="unknown contributor of .* 'musik'. Did you mean 'music'"):
        leave(run, "musik")
    with held(run), pytest.raises(RunError, match="another run is at work"):
        leave(run, "music")
    assert Journal(run).left() == []
    with pytest.raises(RunError, match="holds no run"):
        leave(tmp_path, "music")


def test_a_flower_strategy_cannot_be_replayed(tmp_path) -> None:
    run, config = tmp_path / "run", config_of()
    grown(run, config, 1)
    strategy = replace(config.fusion, strategy="flwr.serverapp.strategy:FedAvg")
    flat = replace(config, fusion=strategy).flat()
    (run / "config.json").write_text(json.dumps({"config": flat, "run": "x"}))
    said = leave(run, "music")
    assert said[1].startswith("no iteration can be replayed: ")
    assert "fuses with flwr.serverapp.strategy:FedAvg: only a fusion rule" in said[1]
    assert Repository(run).latest() == 1


def test_a_stale_contribution_is_replayed_from_its_own_base_and_with_its_age(tmp_path) -> None:
    """travel began from the start, and counts 2^-1/2 in iteration 2; garden from base 1."""
    run = tmp_path / "run"
    start(run, config_of())
    repository, store = Repository(run), Store(run / INCOMING, 2)
    one = {k: t + 1 for k, t in BODY.items()}
    repository.publish(1, 0, Weights(one), {})
    store.open()
    rows = []
    for name, begun, by, age in (("garden", 1, 3.0, 0), ("travel", 0, 2.0, 1)):
        base = dict(repository.body(begun).items())
        mine = {k: t + by for k, t in base.items()}
        began = Start(begun + 1, repository.sha256(begun))
        put = store.put(Contribution(name, start=began), mine.items(), Weights(mine).template())
        aged = {"staleness": age} if age else {}
        rows.append({"name": name, "verdict": "accepted", "sha256": put.sha256, **aged})
    repository.publish(2, 1, Weights(one), {"contributors": rows})
    kept = Kept(run)
    kept.take(2, 9)
    ones = kept.contributions(2)
    assert [(o.name, o.staleness) for o in ones] == [("garden", 0), ("travel", 1)]
    garden, travel = kept.onto(1, ones)
    assert torch.equal(garden.get("w"), one["w"] + 3)
    torch.testing.assert_close(travel.get("w"), one["w"] + 2 * 2**-0.5)


def test_a_replay_has_a_moving_average_where_the_run_has_one(tmp_path) -> None:
    run, config = tmp_path / "run", config_of(**{"fusion.ema": 0.5})
    grown(run, config, iterations=1)
    leave(run, "music")
    store = Repository(run)
    start_, made = body(run, 0), body(run, 2)
    for key, tensor in store.average(2).items():
        torch.testing.assert_close(tensor, (start_[key] + made[key]) / 2)
