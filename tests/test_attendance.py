"""Who takes part in a simulation."""

from typing import Any

from cold_flower.config import Config
from cold_flower.server import attendance
from cold_flower.server.roster import Member


def test_what_one_gave_that_is_away_counts(monkeypatch) -> None:
    """A run by `flwr run` is resumed with fewer nodes than it was begun with."""
    here = {"music": Member("music", 1, 5, 50)}
    monkeypatch.setattr(attendance, "gather", lambda *_, **__: here)
    config = Config.from_flat({"tasks": "music,market,travel", "unseen": "travel"})
    grid: Any = None
    planned = attendance.Planned(grid, config, "m", print)
    assert planned.cohort(1) == ["music"]
    assert [name for name in ("music", "market", "travel") if planned.allowed(name)] == [
        "music", "market",
    ]  # fmt: skip
