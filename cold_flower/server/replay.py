"""Fuse kept contributions again, offline: with the run's own rule, options, stages and seed."""

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cold_flower.config import Config
from cold_flower.errors import RunError
from cold_flower.repository.bases import Repository
from cold_flower.repository.kept import Kept
from cold_flower.server.manifest import describe, moved
from cold_flower.server.strategy import draws, rule
from strategies.contributions import Contribution
from strategies.diagnostics import diagnose
from strategies.fusion import Weights, load


class Replay:
    """Fuses what a run has kept.

    Args:
        config: the run's.
        run_dir: its directory.

    Raises:
        RunError: it fuses with a Flower strategy, or is a baseline.
    """

    def __init__(self, config: Config, run_dir: Path) -> None:
        if config.baseline:
            raise RunError(f"{run_dir} is a baseline ({config.baseline}): nobody contributes to it")
        if config.fusion.strategy:
            raise RunError(
                f"{run_dir} fuses with {config.fusion.strategy}: only a fusion rule (fusion.rule) "
                "can fuse what was kept again"
            )
        self._config, self._run_dir = config, run_dir
        self.repository, self.kept = Repository(run_dir), Kept(run_dir)
        chosen: Any = load(config.fusion.rule, **config.rule_options())
        self.least: int = chosen.min_contributions

    def fuse(
        self, base: int, given: Sequence[Weights], state: Path, iteration: int
    ) -> dict[str, Tensor]:
        """Return what the rule and its stages make of a base and contributions.

        Args:
            base: an iteration; the memory of the fusion's optimizer is the one beside it.
            given: the contributions.
            state: where that memory goes then, if there is one.
            iteration: that the contributions were given to, for a rule that draws.
        """
        repository = self.repository
        fuse = rule(
            self._config,
            repository,
            before=lambda: repository.state(base),
            after=lambda: state,
        )
        return dict(fuse(repository.body(base), given, seed=draws(self._config, iteration)))

    def publish(self, iteration: int, left: str, gone: Collection[str]) -> tuple[int, bool]:
        """Make an iteration again on the latest base without some; publish it as a new one.

        Args:
            iteration: which.
            left: who left, to be written down.
            gone: everybody who left.

        Returns:
            Its number, and whether it is exact: its base is the one that the contributions were
            made from. Otherwise their differences from that one are fused.

        Raises:
            RunError: the contributions are not kept.
        """
        repository, kept = self.repository, self.kept
        head, number = repository.latest() or 0, repository.numbers()[-1] + 1
        everybody = kept.contributions(iteration)
        ours = [one for one in everybody if one.name not in gone]
        given, base = kept.onto(head, ours), repository.body(head)
        exact = repository.sha256(head) == repository.sha256(kept.made_from(iteration))
        with tempfile.TemporaryDirectory(dir=self._run_dir, prefix=".replay-") as folder:
            state = Path(folder) / "state.safetensors"
            fused = self.fuse(head, given, state, kept.origin(iteration))
            reason = f"it left: this is iteration {iteration} without it"
            refused = [Contribution(o.name, "refused", reason) for o in everybody if o not in ours]
            measured = diagnose(base, given)
            manifest = describe(self._config, [*ours, *refused], measured, None)
            manifest |= moved(repository.body(0), base, Weights(fused), measured.mean)
            manifest["replay"] = {"of": iteration, "without": left, "exact": exact}
            there = state if state.exists() else None
            decay = self._config.fusion.ema
            repository.publish(number, head, Weights(fused), manifest, state=there, decay=decay)
        return number, exact
