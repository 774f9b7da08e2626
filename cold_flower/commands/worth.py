"""`cold-flower worth`: what each contribution to an iteration was worth, by fusing without it.

Sets of the iteration's kept contributions are fused as the run fuses, and scored here, in this
process: each contributor's task as its contributor scores it, on its own dev split (where a drop
box alone gave them, all that are evaluated). The value of a set is the mean over these tasks; a set
too small for the rule leaves the base as it is, as a run does. What was scored stands in
``<run-dir>/worth/scores.jsonl``, so a stopped command goes on.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from cold_flower.config import PROTOCOLS, Config
from cold_flower.contributors.contributor import Contributor
from cold_flower.data.plan import plan
from cold_flower.errors import ConfigError, RunError
from cold_flower.models.body import State
from cold_flower.reporting.runs import configuration
from cold_flower.reporting.worth import Worth
from cold_flower.repository.bases import rejected
from cold_flower.repository.journal import Journal
from cold_flower.repository.kept import accepted
from cold_flower.seeds import derive
from cold_flower.server.replay import Replay
from strategies.fusion import fingerprint
from strategies.fusion._deltas import one_thread
from strategies.names import unknown
from strategies.worth import Counted, Shapley, SpentError, leave_one_out, shapley

FOLDER, SCORED = "worth", "scores.jsonl"  # in a run directory, and in that folder
SPLITS = ("dev", "test")
SMALL = 5_000_000  # numbers: a step of a smaller model is shorter than the barrier of threads


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
        bench = _Bench(config, run_dir, replay, chosen, protocol, split, say)
        names = bench.names
        if budget < (least := len(names) + 2):
            raise ConfigError(
                f"budget is {budget}, expected at least {least}: the base, all {len(names)} "
                "contributions, and all without each"
            )
        value = Counted(bench.value, budget)
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


class _Bench:
    """Fuses and scores sets of one iteration's contributions."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        replay: Replay,
        iteration: int,
        protocol: str,
        split: str,
        say: Callable[[str], object],
    ) -> None:
        self._config, self._replay, self._iteration = config, replay, iteration
        self._asked = {"protocol": protocol, "split": split}
        self._say = say
        repository, kept = replay.repository, replay.kept
        if not iteration:
            raise RunError(f"iteration 0 of {run_dir} is the start: nobody contributed to it")
        self.names = accepted(repository, iteration)
        manifest = repository.manifest(iteration)
        contributions = kept.contributions(iteration)
        self._base = int(manifest["parent"])
        repository.with_weights(self._base)
        given = kept.onto(self._base, contributions)
        self._given = dict(zip(self.names, given, strict=True))
        self._published = "" if rejected(manifest) else manifest["sha256"]
        folder = run_dir / FOLDER
        folder.mkdir(exist_ok=True)
        self._journal = Journal(folder)
        planned, left = plan(config), Journal(run_dir).left()
        staying = [name for name in planned.names if name not in left]
        # What came from a drop box has no data here; nor has any, where that alone feeds the run.
        judges = [name for name in staying if name in self.names] or [
            name for name in staying if name in planned.evaluated
        ]
        if not judges:
            raise RunError(f"nobody is left in {run_dir} to score what iteration {iteration} took")
        self._scorers = {
            name: Contributor(config, planned.names.index(name), run_dir / "contributors")
            for name in judges
        }
        self._rows = [
            row
            for row in self._journal.rows(SCORED)
            if {k: row[k] for k in self._asked} == self._asked
            and row["scores"].keys() == self._scorers.keys()
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
            if names == {*self.names} and self._published not in ("", sha256):
                self._say(
                    f"WARNING: fused here, iteration {self._iteration} is {sha256[:12]}, published "
                    f"was {self._published[:12]}: another kind of machine, or another version"
                )
            known = [row for row in self._rows if row["sha256"] == sha256]  # the same weights
            scores = known[0]["scores"] if known else self._score(body)
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
            return self._replay.fuse(self._base, given, Path(folder) / "state.safetensors")

    def _score(self, body: State) -> Mapping[str, Any]:
        protocol, split = self._asked["protocol"], self._asked["split"]
        small = sum(tensor.numel() for tensor in body.values()) < SMALL
        found = {}
        with one_thread() if small else nullcontext():
            for name, who in self._scorers.items():
                scores, _ = who.evaluate(
                    body, [protocol], iteration=self._iteration, seed=self._config.seed, split=split
                )
                found[name] = scores[protocol]
        return found
