"""How contributors share cores and GPUs."""

import json
import os
from dataclasses import replace

import pytest

from cold_flower.config import Config
from cold_flower.errors import ConfigError
from cold_flower.models.body import body_of
from cold_flower.models.starting import starting_model
from cold_flower.runtime import machine
from cold_flower.runtime.machine import Machine
from cold_flower.runtime.resources import (
    GB,
    PROCESS,
    allocate,
    describe,
    footprint,
    parameters,
)

CORES = Machine(cores=8, memory=64 * GB)
GPUS = Machine(cores=16, memory=128 * GB, gpus=(80 * GB, 70 * GB))


@pytest.mark.parametrize(
    ("machine", "keys", "workers", "cpus", "gpus"),
    [
        (CORES, {}, 8, 1, 0.0),  # a contributor per core
        (CORES, {"contributors": 3}, 3, 1, 0.0),  # not more than there is work for
        (CORES, {"cpus": 3}, 2, 3, 0.0),
        (CORES, {"footprint": 20 * GB}, 3, 1, 0.0),  # not more than fit into memory
        (CORES, {"footprint": 900 * GB}, 1, 1, 0.0),  # at least one
        (GPUS, {"footprint": 10 * GB}, 14, 1, 0.1428),  # 7 fit beside what the second GPU holds
        (GPUS, {"footprint": 30 * GB}, 4, 4, 0.5),
        (GPUS, {"footprint": 30 * GB, "contributors": 2}, 2, 8, 1.0),  # none idle, none shared
        (GPUS, {"gpus": 0.5}, 4, 4, 0.5),
        (GPUS, {"gpus": 0.4}, 4, 4, 0.4),  # a fraction cannot span two GPUs: not five
        (GPUS, {"gpus": 1.0, "cpus": 2}, 2, 2, 1.0),
        (GPUS, {"gpus": 0.0}, 12, 1, 0.0),  # GPUs are left alone
    ],
)
def test_the_choice(machine, keys, workers, cpus, gpus) -> None:
    contributors = 12 if "gpus" in keys else 24
    chosen = allocate(machine, **{"contributors": contributors, "footprint": GB, **keys})
    assert (chosen.workers, chosen.cpus, chosen.gpus) == (workers, cpus, gpus)
    assert chosen.workers * chosen.cpus <= machine.cores
    federation = dict(pair.split("=") for pair in chosen.federation(9).split())
    # Flower makes min(floor(cpus / cpus each), floor(gpus / gpus each)) Ray actors.
    assert int(federation["init-args-num-cpus"]) // cpus == workers
    if gpus:
        assert int(federation["init-args-num-gpus"]) / gpus >= workers
        assert int(1 / gpus + 1e-9) * len(machine.gpus) >= workers


@pytest.mark.parametrize(
    ("machine", "keys", "words"),
    [
        (CORES, {"gpus": 0.5}, "is 0.5, but there is no GPU here"),
        (GPUS, {"gpus": 1.5}, "is 1.5: .* a fraction from 0.01 to 1"),
        (GPUS, {"gpus": -1.0}, "a fraction from 0.01 to 1"),
        (GPUS, {"gpus": 0.001}, "a fraction from 0.01 to 1"),
        (CORES, {"cpus": 9}, "is 9, expected 1 to 8: there are 8 cores"),
        (CORES, {"cpus": 0}, "is 0, expected 1 to 8"),
    ],
)
def test_what_cannot_be_placed(machine, keys, words) -> None:
    with pytest.raises(ConfigError, match=words):
        allocate(machine, contributors=4, footprint=GB, **keys)


def test_the_line_says_what_and_why() -> None:
    line = describe(allocate(CORES, contributors=24, footprint=2 * GB))
    assert line == (
        "8 contributors at once, 1 core each (no GPU here, 8 cores, 64 GB of memory available; "
        "a contributor takes an estimated 2.0 GB)"
    )
    full = describe(allocate(GPUS, contributors=24, footprint=60 * GB, gpus=0.5))
    assert "4 contributors at once, 4 cores each, 0.5 of a GPU each (2 GPU(s)" in full
    assert "MORE than fits: let fewer share it (--gpus-per-contributor" in full
    alone = describe(allocate(CORES, contributors=24, footprint=900 * GB))
    assert alone.startswith("1 contributors at once")
    assert "MORE than fits" in alone


def test_the_footprint_by_hand(tiny) -> None:
    count = parameters(tiny)
    body = body_of(starting_model(tiny, seed=0)[0])
    assert count >= sum(t.numel() for t in body.values())
    config = Config.from_flat({"finetune.micro-batch-size": 4, "finetune.max-length": 10})
    fixed, tokens = PROCESS + 20 * count, 4 * 10
    layers = 1.15  # of two: the last computes the first token alone
    assert footprint(config, tiny, bf16=True, cores=False) == fixed + 62 * tokens * layers * 64
    wide = fixed + 95 * tokens * layers * 64  # what auto comes to there
    assert footprint(config, tiny, bf16=False, cores=False) == wide
    written = 9 * tokens * layers * 4 * 10  # 4 heads, each with 10 weights for a token
    assert footprint(config, tiny, bf16=False, cores=True) == wide + 4 * count + written
    every = fixed + 95 * tokens * 2 * 64
    assert footprint(config, tiny, bf16=False, cores=False, plain=True) == every
    every += 4 * count + 14 * tokens * 2 * 4 * 10  # torch keeps more of attention
    assert footprint(config, tiny, bf16=False, cores=True, plain=True) == every
    # A forward pass holds no more than the batch.
    small = Config.from_flat({"finetune.batch-size": 4, "finetune.micro-batch-size": 99})
    four = replace(config, finetune=replace(small.finetune, max_length=10))
    assert footprint(four, tiny, bf16=True, cores=False) == footprint(
        config, tiny, bf16=True, cores=False
    )
    whole = Config.from_flat({"finetune.batch-size": 8, "finetune.precision": "fp32"})
    most = 8 * 38  # of its tokenizer
    assert footprint(whole, tiny, bf16=True, cores=False) == fixed + most * layers * (95 * 64)


def test_a_containers_limits_count(monkeypatch) -> None:
    limits = {"cpu.max": "150000 100000", "memory.max": "5000000000"}
    monkeypatch.setattr(machine, "_cgroup", lambda name: limits[name])
    small = machine.this_machine()
    assert small.cores == 1
    assert small.memory <= 5e9
    monkeypatch.setattr(machine, "_cgroup", lambda name: {"cpu.max": "max 100000"}.get(name, "max"))
    assert machine.this_machine().cores == len(os.sched_getaffinity(0))


def test_gpus_are_asked_in_a_process_of_their_own(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    answer = json.dumps({"bf16": False, "free": [7e9, 5e9]})
    monkeypatch.setattr(machine, "_GPUS", f"print({answer!r})")
    two = machine.this_machine()
    assert (two.gpus, two.bf16, two.fake) == ((7e9, 5e9), False, 0)
    monkeypatch.setattr(machine, "_GPUS", "raise RuntimeError('no driver')")
    with pytest.raises(ConfigError, match="CUDA fails: RuntimeError: no driver. CUDA_VISIBLE"):
        machine.this_machine()
    with pytest.raises(ConfigError, match="--fake-gpus is for machines without a GPU"):
        machine.this_machine(fake_gpus=2)
