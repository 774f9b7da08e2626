"""Who is asked when."""

from collections import Counter

import pytest

from cold_flower.data.schedule import cohort
from cold_flower.errors import ConfigError

SEEN = [f"t{i}" for i in range(10)]


def test_a_draw_depends_on_seed_and_iteration_alone() -> None:
    draw = cohort(SEEN, 3, size=4, schedule="random", seed=1)
    assert draw == cohort(SEEN[::-1], 3, size=4, schedule="random", seed=1) == sorted(draw)
    assert len(set(draw)) == 4
    others = [cohort(SEEN, i, size=4, schedule="random", seed=s) for i, s in ((4, 1), (3, 2))]
    assert draw not in others


def test_round_robin_gives_everybody_the_same_share() -> None:
    turns = [cohort(SEEN, i, size=4, schedule="round-robin", seed=0) for i in range(1, 6)]
    assert set(Counter(name for turn in turns for name in turn).values()) == {2}


def test_all_of_them() -> None:
    assert cohort(SEEN, 1, size=0, schedule="random", seed=0) == SEEN
    with pytest.raises(ConfigError, match="is 11, but only 10 contributors"):
        cohort(SEEN, 1, size=11, schedule="random", seed=0)
