"""How contributors share cores and GPUs."""

import pytest

from cold_flower.config import Config
from cold_flower.errors import ConfigError
from cold_flower.model import body_of, starting_model
from cold_flower.resources import GB, PROCESS, Machine, allocate, describe, footprint, parameters

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
    made = allocate(
        machine, **{"contributors": 12 if "gpus" in keys else 24, "footprint": GB, **keys}
    )
    assert (made.workers, made.cpus, made.gpus) == (workers, cpus, gpus)
    assert made.workers * made.cpus <= machine.cores
    federation = dict(pair.split("=") for pair in made.federation(9).split())
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
    said = describe(allocate(CORES, contributors=24, footprint=2 * GB))
    assert said == (
        "8 contributors at once, 1 core each (no GPU here, 8 cores, 64 GB of memory available; "
        "a contributor takes an estimated 2.0 GB)"
    )
    full = describe(allocate(GPUS, contributors=24, footprint=60 * GB, gpus=0.5))
    assert "4 contributors at once, 4 cores each, 0.5 of a GPU each (2 GPU(s)" in full
    assert "MORE than fits: raise --gpus-per-contributor" in full


def test_the_footprint_by_hand(tiny) -> None:
    count = parameters(tiny)
    body = body_of(starting_model(tiny, seed=0)[0])
    assert count >= sum(t.numel() for t in body.values())
    config = Config.from_flat({"finetune.micro-batch-size": 4, "finetune.max-length": 10})
    assert footprint(config, tiny) == PROCESS + 20 * count + 34 * 4 * 10 * 2 * 64
    whole = Config.from_flat({"finetune.batch-size": 8, "finetune.precision": "fp32"})
    assert footprint(whole, tiny) == PROCESS + 20 * count + 68 * 8 * 128 * 2 * 64
