"""``evaluate.reuse``: a contribution is the finetuned evaluation of its base."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cold_flower.config import Config
from cold_flower.contributors.contributor import Contributor
from cold_flower.data.plan import plan
from cold_flower.data.schedule import cohort
from cold_flower.models.starting import starting_model
from cold_flower.reporting import runs
from cold_flower.reporting.statistics import pick
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import CONFIG, PROGRESS, RESULT, SCORES, load_config
from cold_flower.runtime import cost as counted
from cold_flower.runtime import experiments
from cold_flower.server import reuse
from cold_flower.training.scoring import DivergedError
from strategies import records
from strategies.contributions import Contribution, Start
from tests.test_evaluation import ARRAYS, Fixture
from tests.test_simulation import body_of, rows, simulate

KEYS = {
    "tasks": "market,music,travel,weather",
    "unseen": "weather",
    "evaluate.protocols": "frozen,finetuned",
    "contributors-per-iteration": 2,
    "iterations": 2,
    "evaluate.reuse": True,
}
SETTINGS = [
    part
    for key, value in KEYS.items()
    for part in ("--set", f"{key}={str(value).lower() if isinstance(value, bool) else value}")
]


def by_task(run: Path) -> list[dict]:
    return sorted(rows(run, SCORES), key=lambda r: (r["iteration"], r["task"], r["protocol"]))


def next_cohort(config: Config, iteration: int) -> list[str]:
    size, schedule = config.contributors_per_iteration, config.schedule
    seen = plan(config).seen
    return cohort(seen, iteration + 1, size=size, schedule=schedule, seed=config.seed)


def test_what_came_with_a_contribution_is_what_an_evaluation_says(in_process, tmp_path) -> None:
    simulate(tmp_path, "run", *SETTINGS)
    run = tmp_path / "run"
    found = by_task(run)
    assert len(found) == 3 * 4 * 2  # every base, task and protocol, each once
    assert len({(r["iteration"], r["task"], r["protocol"]) for r in found}) == len(found)
    config = Config.from_flat(load_config(run))
    evaluated = [e["line"] for e in rows(run, PROGRESS) if e.get("phase") == "evaluate"]
    assert sum("finetuned 0." in line for line in evaluated if "/" in line) == 3 * 4 - 2 * 2
    assert "finetuned of 2 tasks comes with the next contributions" in evaluated[7]
    whole = plan(config)
    for iteration in (0, 1):
        for name in next_cohort(config, iteration):
            me = Contributor(config, whole.names.index(name), run / "contributors")
            body = Repository(run).body(iteration)
            base = dict(body.items())
            scores, facts = me.evaluate(base, ["finetuned"], iteration=iteration, seed=0)
            row = next(
                r
                for r in found
                if (r["iteration"], r["task"], r["protocol"]) == (iteration, name, "finetuned")
            )
            assert row["value"] == scores["finetuned"]
            assert row["n_test"] == scores["num-examples"]
            assert row["group"] == "seen"
            for key, value in facts.items():
                assert row[key.replace("-", "_")] == value, key
    given = {(r["iteration"], r["contributor"]): r for r in rows(run, "contributions.jsonl")}
    assert all("finetuned" in row for row in given.values())

    simulate(tmp_path, "parts", *SETTINGS, "--set", "iterations=1")
    first = [r for r in rows(tmp_path / "parts", SCORES) if r["iteration"] == 1]
    assert len(first) == 8  # the last base: nothing follows
    simulate(tmp_path, "parts", *SETTINGS, "--resume")
    assert by_task(tmp_path / "parts") == found
    assert [body_of(tmp_path / "parts", i) for i in range(3)] == [body_of(run, i) for i in range(3)]
    there = tmp_path / "parts" / SCORES
    there.write_text("".join(there.read_text().splitlines(keepends=True)[:-1]))
    (tmp_path / "parts" / RESULT).unlink()
    simulate(tmp_path, "parts", *SETTINGS, "--resume")
    assert by_task(tmp_path / "parts") == found
    told = [event["line"] for event in rows(tmp_path / "parts", PROGRESS)]
    assert any(
        line.endswith("base 2 is the last; what its evaluation lacks is left") for line in told
    )

    simulate(tmp_path, "without", *SETTINGS, "--set", "evaluate.reuse=false")
    without = tmp_path / "without"
    assert by_task(without) == found
    assert [body_of(without, i) for i in range(3)] == [body_of(run, i) for i in range(3)]
    assert not any("finetuned" in row for row in rows(without, "contributions.jsonl"))


def test_every_second_base_and_nothing_that_is_known(tmp_path) -> None:
    run = Fixture(tmp_path, **{**KEYS, "evaluate.every": 2, "iterations": 4})
    follow = {}
    for base in (1, 3, 4, 0, 2):
        asked, follow[base] = run.evaluate(base, f"{base}"), run.evaluation.left_out
    assert follow[1] == follow[3] == follow[4] == []
    assert len(follow[0]) == len(follow[2]) == 2
    names = follow[2]
    assert not {(name, "finetuned") for name in names} & {*asked}
    assert len(asked) == 4 * 2 - 2
    good, wrong = names
    scores = {"num-examples": 60, "num-test-examples": 40, "finetuned": 0.75, "seconds": 1.0}
    given = [
        Contribution(good, "refused", "norm", metrics=scores, start=Start(3, "2")),
        Contribution(wrong, metrics={**scores, "finetuned": 1.5}, start=Start(3, "2")),
        Contribution(asked[0][0], metrics=scores, start=Start(3, "2")),  # is known
    ]
    before = len(run.grid.sent)
    run.evaluation.complete(2, lambda: ARRAYS, "2", given)
    again = [run.names[m.metadata.dst_node_id] for m in run.grid.sent[before:]]
    assert again == [wrong]
    told = [event["line"] for event in run.events]
    assert (
        f"the score that {wrong} sent is left out: finetuned is 1.5, which no accuracy can be"
        in (told)
    )
    # 75, 50 and 50; of base 0 nobody was asked for the two that were left out.
    assert told[-1].startswith("base 2: frozen seen 25.0 (+0.0), finetuned seen 58.3")
    assert run.evaluation.left_out == []
    of_good = pick(run.journal.rows(SCORES), task=good, iteration=2, protocol="finetuned")
    assert [row["value"] for row in of_good] == [0.75]
    assert len(pick(run.journal.rows(SCORES), iteration=2)) == 4 * 2
    run.evaluate(0, "0")
    one, other = run.evaluation.left_out
    given = [
        Contribution(one, metrics={**scores, "num-test-examples": 0}, start=Start(1, "0")),
        # After a rollback: the draws are another iteration's.
        Contribution(other, metrics=scores, start=Start(6, "0")),
    ]
    before = len(run.grid.sent)
    run.evaluation.complete(0, lambda: ARRAYS, "0", given)
    assert any(event["line"].endswith("measured on 0 examples") for event in run.events)
    again = [run.names[m.metadata.dst_node_id] for m in run.grid.sent[before:]]
    assert sorted(again) == sorted([one, other])


def test_while_scores_are_to_come_no_mean_of_the_others_stands_for_the_base(tmp_path) -> None:
    run = Fixture(tmp_path, **KEYS)
    (tmp_path / CONFIG).write_text(json.dumps({"config": KEYS}))
    for base in (0, 1):
        run.evaluate(base, f"{base}")
        if base == 0:
            run.evaluation.complete(0, lambda: ARRAYS, "0", [])
    assert run.events[-1]["scores"] == "frozen seen 25.0 (+0.0), frozen unseen 25.0 (+0.0)"
    assert run.events[-1]["line"].endswith("finetuned of 2 tasks comes with the next contributions")
    known = runs.scores(tmp_path)
    assert {row["iteration"] for row in pick(known, protocol="finetuned")} == {0}
    assert len(pick(known, protocol="frozen")) == 2 * 4
    run.evaluation.complete(1, lambda: ARRAYS, "1", [])
    assert len(pick(runs.scores(tmp_path), protocol="finetuned")) == 2 * 4
    assert "finetuned seen 50.0 (+0.0)" in run.events[-1]["scores"]


def test_who_is_not_in_the_cohort_after_all_is_asked_later_and_nobody_waits_for_it(
    tmp_path,
) -> None:
    """At sites: who is there when the iteration begins may be others."""
    run = Fixture(tmp_path, **KEYS)
    run.participants.expected = lambda iteration: ["market", "music"]
    run.participants.cohort = None  # not drawn before its time
    away = run.participants.members.pop("weather")
    run.evaluate(0, "0")
    assert run.evaluation.left_out == ["market", "music"]
    run.participants.expected = lambda iteration: ["travel"]
    del run.participants.members["music"]  # is gone
    run.participants.members["weather"] = away  # came too late for this base
    before = len(run.grid.sent)
    run.evaluation.complete(0, lambda: ARRAYS, "0", [])
    asked = [run.names[m.metadata.dst_node_id] for m in run.grid.sent[before:]]
    assert asked == ["market"]


@pytest.mark.parametrize(
    "keys",
    [
        {"evaluate.reuse": False},
        {"finetune.head": "keep"},
        {"finetune.proximal-mu": 0.1},
        {"partition.kind": "shards", "partition.fresh": True},
        {"attacks": "{music = 'nan'}"},
        {"baseline": "multitask"},
        {"evaluate.protocols": "frozen"},
        {"schedule": "asynchronous"},
        {"quorum": 1, "late": "next"},
        {
            "fusion.strategy": "flwr.serverapp.strategy:FedProx",
            "fusion.options": "{proximal_mu = 0.1}",
        },
    ],
)
def test_where_a_contribution_is_not_the_evaluation_each_is_finetuned_apart(keys) -> None:
    assert reuse.applies(Config.from_flat(KEYS))
    assert reuse.applies(Config.from_flat({**KEYS, "gate.protocol": "frozen"}))
    assert not reuse.applies(Config.from_flat({**KEYS, **keys}))


def test_the_cost_is_that_of_fewer_finetunings(tmp_path) -> None:
    costs = []
    for reused in (False, True):
        settings = {**KEYS, "evaluate.reuse": reused, "run-dir": str(tmp_path / "none")}
        config = experiments.configure("demo", settings)
        checked = experiments.check(config)
        costs.append(counted.cost(config, checked, counted.ahead(config, checked), 1000))
    plain, fewer = costs
    assert plain.evaluations - fewer.evaluations == 4  # two of base 0, two of base 1
    epochs = config.finetune.max_epochs
    names = [name for i in (0, 1) for name in next_cohort(config, i)]
    trained = sum(checked.train[name] for name in names)
    assert plain.trained_on - fewer.trained_on == epochs * trained
    assert replace(plain, evaluations=0, trained_on=0, messages=0) == replace(
        fewer, evaluations=0, trained_on=0, messages=0
    )


def test_a_score_leaves_only_where_it_is_asked_for(tiny) -> None:
    me = Contributor(
        Config.from_flat({**KEYS, "finetune.max-epochs": 1, "finetune.max-examples": 40}), 1
    )
    body = starting_model(tiny, seed=0)[1]
    for scored in (False, True):
        _, metrics = me.finetune(body, iteration=1, seed=0, scored=scored)
        assert ("finetuned" in metrics, "num-test-examples" in metrics) == (scored, scored)
        assert metrics.keys() - {"stopped"} <= {*records.LISTED}
        said = metrics
    scores, _ = me.evaluate(body, ["finetuned"], iteration=0, seed=0)
    assert scores["finetuned"] == said["finetuned"]  # of the base before the contribution
    pulled = Contributor(replace_mu(me.config, 0.1), 1)  # by a strategy of somebody's own
    assert "finetuned" not in pulled.finetune(body, iteration=1, seed=0, scored=True)[1]


def test_a_score_that_cannot_be_costs_no_contribution(tiny, monkeypatch) -> None:
    def diverged(*given: object) -> float:
        raise DivergedError("outputs are not finite")

    me = Contributor(
        Config.from_flat({**KEYS, "finetune.max-epochs": 1, "finetune.max-examples": 40}), 1
    )
    body = starting_model(tiny, seed=0)[1]
    monkeypatch.setattr("cold_flower.training.protocols.score", diverged)
    trained, metrics = me.finetune(body, iteration=1, seed=0, scored=True)
    assert trained.keys() == body.keys()
    assert not {*records.SCORED} & metrics.keys()  # the evaluation asks for it


def replace_mu(config: Config, mu: float) -> Config:
    return replace(config, finetune=replace(config.finetune, proximal_mu=mu))


def test_the_gate_sets_models_of_several_iterations_against_each_other(tiny, monkeypatch) -> None:
    """So it draws alike for all; a base's own finetuned score has its contribution's draws."""
    found: dict[str, list] = {"test": [], "dev": []}
    monkeypatch.setattr(
        "cold_flower.training.protocols.evaluate",
        lambda *given: (found[split].append(given[-1]), ({}, {}))[1],
    )
    me = Contributor(Config.from_flat(KEYS), 1)
    for split in found:
        for iteration in (1, 2):
            me.evaluate({}, ["frozen", "finetuned"], iteration=iteration, seed=0, split=split)
    first, second = found["test"]
    assert first["frozen"] == second["frozen"]
    assert first["finetuned"] != second["finetuned"]
    assert found["dev"][0] == found["dev"][1]
