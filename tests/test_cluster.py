"""A Ray cluster's resources."""

import pytest

from cold_flower.errors import ConfigError
from cold_flower.runtime import cluster


@pytest.mark.parametrize(
    ("there", "keys", "workers", "cpus", "gpus"),
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
def test_the_choice(there, keys, workers, cpus, gpus) -> None:
    made = cluster.allocate("here:1", there, **{"cpus": None, "gpus": None, **keys})
    assert (made.workers, made.cpus, made.gpus) == (workers, cpus, gpus)
    assert "init-args" not in made.federation(9)
    assert made.cluster == "here:1"


@pytest.mark.parametrize(
    ("there", "keys"),
    [
        ([], {}),
        ([(2, 0)], {"cpus": 3}),
        ([(2, 0)], {"gpus": 1.0}),
        ([(2, 1)], {"gpus": 2.0}),
        ([(2, 1)], {"cpus": 0}),
    ],
)
def test_what_no_node_has(there, keys) -> None:
    with pytest.raises(ConfigError, match="no node of the Ray cluster has"):
        cluster.allocate("here:1", there, **{"cpus": None, "gpus": None, **keys})


def test_a_fraction_that_cannot_be_placed() -> None:
    with pytest.raises(ConfigError, match=r"is 0.4: on a cluster it is 1/2, 1/4"):
        cluster.allocate("here:1", [(16, 4)], cpus=None, gpus=0.4)
