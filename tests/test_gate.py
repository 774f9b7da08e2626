"""The gate: pure logic, scores made up."""

import pytest
import torch
from flwr.app import ArrayRecord

from strategies import records
from strategies.errors import FusionError, RunStopped
from strategies.gate import Gate, fall


def model_of(names) -> ArrayRecord:
    """A model that shows whose contributions it was made of: one tensor each."""
    return records.pack((name, torch.zeros(1)) for name in names)


def test_a_fall_by_hand() -> None:
    before = {"a": 0.5, "b": 0.7}
    assert fall(before, {"a": 0.5, "b": 0.7}, 0, 0) == ""
    assert fall(before, {"a": 0.6, "b": 0.6}, 0, 0.1001) == ""
    assert fall(before, {"a": 0.61, "b": 0.58}, 0.01, 0.1) == "b falls by 0.1200 (tolerance 0.1)"
    assert (
        fall(before, {"a": 0.4, "b": 0.7}, 0.01, 1) == "the mean falls by 0.0500 (tolerance 0.01)"
    )
    assert fall({"a": 0.86, "b": 0.71}, {"a": 0.85, "b": 0.7}, 0.01, 1) == ""  # just as much
    assert fall({"a": 0.4}, {"a": 0.3}, 1, 0.1) == ""
    assert fall({}, {"a": 0.1}, 0, 0) == "0 of 1 contributors could validate it"
    assert fall(before, {"a": 0.5}, 0, 0) == ""  # half of them
    assert fall({**before, "c": 0.1}, {"a": 0.5}, 0, 0) == "1 of 3 contributors could validate it"
    said = "1 of 3 contributors could validate it"  # the others could not validate the base
    assert fall({"a": 0.5}, {"a": 0.9, "b": 0.0, "c": 0.0}, 0, 0) == said
    assert fall({"a": 0.5}, {"a": 0.9}, 0, 0, voters=3) == said


def test_a_gate_that_nobody_can_answer_ends_the_run_the_second_time() -> None:
    cohort, voters = Cohort(), [3]
    gate = cohort.gate(voters=lambda: voters[0])  # of which one scores
    said = "1 of 3 contributors could validate the present base, and half have to"
    for _ in range(2):
        assert choose(gate, cohort) is None
        assert (gate.judgement.accepted, gate.judgement.reason) == (False, said)
        assert cohort.made == []
        voters[0] = 1  # the others are away: those that are there go on
        assert choose(gate, cohort) == "abcd"
        cohort.made.clear()
        voters[0] = 3
    assert choose(gate, cohort) is None
    with pytest.raises(RunStopped, match=f"the gate: for the second time {said}"):
        choose(gate, cohort)


def test_what_the_rule_cannot_fuse_is_no_candidate() -> None:
    cohort = Cohort("c")

    def make(names) -> ArrayRecord:
        if len(names) < 4:
            raise FusionError("needs four")
        return cohort.make(names)

    gate = cohort.gate()
    assert gate.choose(list("abcd"), make, lambda: list("cabd")) is None
    assert not gate.judgement.accepted
    assert gate.judgement.candidates == 1


class Cohort:
    """Contributors of which some do harm."""

    def __init__(self, *harmful: str) -> None:
        self.harmful = set(harmful)
        self.made: list[str] = []

    def make(self, names) -> ArrayRecord:
        self.made.append("".join(sorted(names)))
        return model_of(names)

    def validate(self, model: ArrayRecord):
        return {"x": 0.6 - 0.1 * len(self.harmful & set(model))}

    def gate(self, **changes):
        limits = {"tolerance": 0.01, "task_tolerance": 0.1, "budget": 8, **changes}
        return Gate(self.validate, lambda: {"x": 0.59}, **limits)


def choose(gate, cohort, order="abcd", least=1):
    chosen = gate.choose(list("abcd"), cohort.make, lambda: list(order), least)
    return None if chosen is None else "".join(chosen)


def test_what_is_good_passes_at_once() -> None:
    cohort = Cohort()
    gate = cohort.gate()
    assert choose(gate, cohort) == "abcd"
    assert cohort.made == ["abcd"]
    found = gate.judgement
    assert (found.accepted, found.reason, found.left_out, found.candidates) == (True, "", (), 1)


def test_the_harmful_one_is_left_out() -> None:
    cohort = Cohort("c")
    gate = cohort.gate()
    assert choose(gate, cohort, "cabd") == "abd"
    assert gate.judgement.left_out == ("c",)
    assert gate.judgement.reason == "the mean falls by 0.0900 (tolerance 0.01)"
    assert gate.judgement.after == {"x": 0.6}


def test_two_harmful_ones_are_left_out_one_after_the_other() -> None:
    cohort = Cohort("b", "d")
    gate = cohort.gate()
    assert choose(gate, cohort, "abcd") == "ac"
    assert cohort.made == ["abcd", "bcd", "acd", "ad", "ac"]
    assert gate.judgement.left_out == ("b", "d")
    assert gate.judgement.candidates == 5


@pytest.mark.parametrize(("changes", "least", "tried"), [({"budget": 2}, 1, 3), ({}, 4, 1)])
def test_without_a_candidate_that_passes_the_base_stays(changes, least, tried) -> None:
    cohort = Cohort("b", "d")
    gate = cohort.gate(**changes)
    assert choose(gate, cohort, least=least) is None
    assert not gate.judgement.accepted
    assert gate.judgement.left_out == ()
    assert gate.judgement.candidates == len(cohort.made) == tried


def test_means_are_compared_over_those_who_scored_both() -> None:
    """Without a, only x answers: that is no reason to think that a did harm."""
    answers = {"ab": {"x": 0.8, "y": 0.1}, "b": {"x": 0.8}, "a": {"x": 0.9, "y": 0.6}}
    gate = Gate(
        lambda model: answers["".join(model)], lambda: {"x": 0.8, "y": 0.6},
        tolerance=0.01, task_tolerance=0.1, budget=8,
    )  # fmt: skip
    made = gate.choose(["a", "b"], model_of, lambda: ["b", "a"])
    assert ([*made], gate.judgement.left_out) == (["a"], ("b",))
    answers["b"] = {"x": 0.7}
    assert [*gate.choose(["a", "b"], model_of, lambda: ["a", "b"])] == ["a"]
