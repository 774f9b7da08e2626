"""A Ray cluster's resources."""

import pytest

from cold_flower.errors import ConfigError, RunError
from cold_flower.runtime import cluster


@pytest.mark.parametrize(
    ("sizes", "keys", "workers", "cpus", "gpus"),
    [
        ([(4, 0), (2, 0)], {}, 6, 1, 0.0),
        ([(4, 0), (2, 0)], {"cpus": 3}, 1, 3, 0.0),  # a contributor does not span nodes
        ([(16, 4), (16, 2)], {}, 6, 1, 1.0),
        ([(16, 4), (16, 2)], {"gpus": 0.5}, 12, 1, 0.5),
        ([(16, 4), (16, 2)], {"gpus": 0.2}, 26, 1, 0.2),
        ([(16, 4), (3, 2)], {"gpus": 0.5, "cpus": 2}, 9, 2, 0.5),
        ([(0, 0), (8, 1)], {}, 1, 1, 1.0),  # a head that runs nothing
        ([(8, 1), (8, 0)], {"gpus": 0.0}, 16, 1, 0.0),
    ],
)
def test_the_choice(sizes, keys, workers, cpus, gpus) -> None:
    chosen = cluster.allocate("here:1", sizes, **{"cpus": None, "gpus": None, **keys})
    assert (chosen.workers, chosen.cpus, chosen.gpus) == (workers, cpus, gpus)
    assert "init-args" not in chosen.federation(9)
    assert chosen.cluster == "here:1"


@pytest.mark.parametrize(
    ("sizes", "keys"),
    [
        ([], {}),
        ([(2, 0)], {"cpus": 3}),
        ([(2, 0)], {"gpus": 1.0}),
        ([(2, 1)], {"gpus": 2.0}),
        ([(2, 1)], {"cpus": 0}),
    ],
)
def test_what_no_node_has(sizes, keys) -> None:
    with pytest.raises(ConfigError, match="no node of the Ray cluster has"):
        cluster.allocate("here:1", sizes, **{"cpus": None, "gpus": None, **keys})


def test_a_fraction_that_cannot_be_placed() -> None:
    with pytest.raises(ConfigError, match=r"is 0.4: on a cluster it is 1/2, 1/4"):
        cluster.allocate("here:1", [(16, 4)], cpus=None, gpus=0.4)


def test_a_cluster_that_does_not_answer_or_fails(monkeypatch) -> None:
    monkeypatch.setattr(cluster, "_NODES", "import time; time.sleep(9)")
    monkeypatch.setattr(cluster, "SECONDS", 0.2)
    with pytest.raises(RunError, match=r"no Ray cluster answers at RAY_ADDRESS=x:1. Start it"):
        cluster.nodes("x:1")
    monkeypatch.setattr(cluster, "_NODES", "raise ConnectionError('version mismatch')")
    monkeypatch.setattr(cluster, "SECONDS", 60)
    with pytest.raises(RunError, match="x:1 fails: ConnectionError: version mismatch Start it"):
        cluster.nodes("x:1")
    monkeypatch.setattr(cluster, "_NODES", 'print(\'[{"CPU": 4.0, "GPU": 1.0}, {}]\')')
    assert cluster.nodes("x:1") == [(4, 1), (0, 0)]
