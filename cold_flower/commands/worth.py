"""`cold-flower worth`: what each contribution to an iteration was worth, by fusing without it.

Sets of the iteration's kept contributions are fused as the run fuses, and scored here, in this
process: each contributor's task as its contributor scores it, on its own dev split (where a drop
box alone gave them, all that are evaluated). The value of a set is the mean over these tasks; a set
too small for the rule leaves the base as it is, as a run does. What was scored stands in
``<run-dir>/worth/scores.jsonl``, so a stopped command goes on.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from cold_flower.commands.scorers import Scorers
from cold_flower.config import PROTOCOLS, Config
from cold_flower.data.plan import plan
from cold_flower.errors import ConfigError, RunError
from cold_flower.models.body import State
from cold_flower.reporting.runs import configuration
from cold_flower.reporting.worth import Worth
from cold_flower.repository.journal import Journal
from cold_flower.repository.kept import accepted
from cold_flower.repository.manifests import rejected
from cold_flower.seeds import derive
from cold_flower.server.replay import Replay
from strategies.fusion import fingerprint
from strategies.names import unknown
from strategies.worth import Counted, Shapley, SpentError, leave_one_out, shapley

FOLDER, SCORED = "worth", "scores.jsonl"  # in a run directory, and in that folder
SPLITS = ("dev", "test")


def worth(
    run_dir: str | Path,
    iteration: int | None = None,
    *,
    budget: int = 100,
    tolerance: float = 0.005,
    protocol: str = "frozen",
    split: str = "dev",
    say: Callable[[str], object] = print,
) -> Worth:
    """Value the contributions to an iteration; a second call goes on after a stop.

    Args:
        run_dir: of a simulation that kept them.
        iteration: which; None is the newest of the lineage whose contributions are kept.
        budget: sets that are scored at most, what is known already counted.
        tolerance: how near to the score of all an order ends (`strategies.worth`), 0.01 a point.
        protocol: how a set is scored.
        split: of each contributor's data: ``dev``, or ``test``.
        say: takes a line for each set.

    Raises:
        RunError: no run, one at work, one of sites; contributions that are not kept.
        ConfigError: a protocol or split that is not known; a budget too small.
    """
    for what, given, valid in (("protocol", protocol, PROTOCOLS), ("split", split, SPLITS)):
        if given not in valid:
            raise ConfigError(unknown(what, given, valid))
    if not 0 <= tolerance <= 1:
        raise ConfigError(f"tolerance is a share from 0 to 1 (0.01 is a point), got {tolerance:g}")
    run_dir = Path(run_dir)
    config = Config.from_flat(configuration(run_dir))
    if config.sites.allow:
        raise RunError(
            f"{run_dir} is a run with sites: the data are there, so no set can be scored here. "
            "gate.protocol has the sites score candidates and leaves out what does harm; how far "
            "each moved the base is leave-one-out in manifest.json"
        )
    with Journal(run_dir).locked():
        replay = Replay(config, run_dir)
        chosen = _newest(replay) if iteration is None else iteration
        names = _contributors(replay, chosen)
        if budget < (least := len(names) + 2):
            raise ConfigError(
                f"budget is {budget}, expected at least {least}: the base, all {len(names)} "
                "contributions, and all without each"
            )
        with _scorers(config, run_dir, chosen, names) as scorers:
            value = Counted(
                _Bench(replay, chosen, names, scorers, protocol, split, say).value, budget
            )
            base, whole = value(frozenset()), value(frozenset(names))
            without = leave_one_out(value, names)
            try:
                seed = derive(config.seed, chosen, "worth")
                found = shapley(value, names, tolerance=tolerance, seed=seed)
            except SpentError:
                found = Shapley({}, {}, 0)
        result = Worth(
            chosen, protocol, split, without, found.mean, found.error, found.orders,
            found.truncated, tolerance, base, whole, len(value),
        )  # fmt: skip
        for path in result.write(run_dir / FOLDER):
            say(str(path))
    return result


def _newest(replay: Replay) -> int:
    """Return the newest iteration of the lineage whose contributions are kept.

    Raises:
        RunError: there is none.
    """
    here = replay.kept.numbers()
    for iteration in reversed(replay.repository.lineage()[1:]):
        if replay.kept.origin(iteration) in here:
            return iteration
    raise RunError(
        f"{replay.kept.folder.parent} keeps no contributions: keep-contributions = N keeps those "
        "of the newest N iterations, from the next one on (--resume takes it)"
    )


def _contributors(replay: Replay, iteration: int) -> list[str]:
    """Return whose contributions an iteration was fused of.

    Raises:
        RunError: it is the start.
    """
    if not iteration:
        run_dir = replay.repository.folder.parent
        raise RunError(f"iteration 0 of {run_dir} is the start: nobody contributed to it")
    return accepted(replay.repository, iteration)


def _scorers(config: Config, run_dir: Path, iteration: int, names: list[str]) -> Scorers:
    """Return who scores what an iteration's contributions make.

    Raises:
        RunError: nobody is left.
    """
    planned, left = plan(config), Journal(run_dir).left()
    staying = [name for name in planned.names if name not in left]
    # What came from a drop box has no data here; nor has any, where that alone feeds the run.
    judges = [name for name in staying if name in names] or [
        name for name in staying if name in planned.evaluated
    ]
    if not judges:
        raise RunError(f"nobody is left in {run_dir} to score what iteration {iteration} took")
    index = {name: planned.names.index(name) for name in judges}
    return Scorers(config, index, run_dir / "contributors")


class _Bench:
    """Fuses and scores sets of one iteration's contributions."""

    def __init__(
        self,
        replay: Replay,
        iteration: int,
        names: list[str],
        scorers: Scorers,
        protocol: str,
        split: str,
        say: Callable[[str], object],
    ) -> None:
        self._replay, self._iteration, self._scorers = replay, iteration, scorers
        self._asked = {"protocol": protocol, "split": split}
        self._say, self._whole = say, {*names}
        repository, kept = replay.repository, replay.kept
        manifest = repository.manifest(iteration)
        contributions = kept.contributions(iteration)
        self._base = int(manifest["parent"])
        repository.with_weights(self._base)
        given = kept.onto(self._base, contributions)
        self._given = dict(zip(names, given, strict=True))
        self._published = "" if rejected(manifest) else manifest["sha256"]
        folder = repository.folder.parent / FOLDER
        folder.mkdir(exist_ok=True)
        self._journal = Journal(folder)
        self._rows = [
            row
            for row in self._journal.rows(SCORED)
            if {k: row[k] for k in self._asked} == self._asked
            and row["iteration"] == iteration  # a finetuned score's draws are an iteration's own
            and row["scores"].keys() == {*scorers.names}
        ]
        self._done = 0

    def value(self, names: frozenset[str]) -> float:
        """Return the mean score of what a set makes of the base."""
        self._done += 1
        listed, wanted = sorted(names), {"iteration": self._iteration, "set": sorted(names)}
        known = [row for row in self._rows if {k: row[k] for k in wanted} == wanted]
        if not known:
            body = self._fuse(listed)
            sha256 = fingerprint(body.items())
            if names == self._whole and self._published not in ("", sha256):
                self._say(
                    f"WARNING: fused here, iteration {self._iteration} is {sha256[:12]}, published "
                    f"was {self._published[:12]}: another kind of machine, or another version"
                )
            known = [row for row in self._rows if row["sha256"] == sha256]  # the same weights
            scores = (
                known[0]["scores"]
                if known
                else self._scorers.scores(body, iteration=self._iteration, **self._asked)
            )
            row = {**wanted, "sha256": sha256, **self._asked, "scores": scores}
            self._journal.append(SCORED, [row])
            self._rows.append(row)
            known = [row]
        mean = statistics.fmean(known[0]["scores"].values())
        self._say(f"{self._done} {', '.join(listed) or 'the base'}: {100 * mean:.2f}")
        return mean

    def _fuse(self, names: list[str]) -> State:
        if len(names) < max(1, self._replay.least):
            return dict(self._replay.repository.body(self._base).items())
        with tempfile.TemporaryDirectory() as folder:
            given = [self._given[name] for name in names]
            state = Path(folder) / "state.safetensors"
            origin = self._replay.kept.origin(self._iteration)
            return self._replay.fuse(self._base, given, state, origin)
