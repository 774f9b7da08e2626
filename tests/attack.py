"""The attack matrix: each attack under each defence (``tests.acceptance attacks``)."""

import json
import os
import subprocess
import sys
from pathlib import Path

from cold_flower.reporting.statistics import mean_and_sem
from cold_flower.repository.journal import CONTRIBUTIONS, SCORES, Journal

COLD_FLOWER = str(Path(sys.executable).parent / "cold-flower")
ATTACKS = {
    "nan": "'nan'",
    "noise": "'noise'",
    "sign-flip": "'sign-flip'",
    "x10": "{kind = 'scale', size = 10.0}",
    "x100": "{kind = 'scale', size = 100.0}",
    "random": "'random'",
    "stale": "{kind = 'stale', from = 2}",
    "stale-lie": "{kind = 'stale-lie', from = 2}",
    "copy": "{kind = 'copy', of = 'weather'}",
    "label-flip": "'label-flip'",
    "shape": "'shape'",
    "huge": "'huge'",
    "names": "'names'",
    "metrics": "'metrics'",
}
DEFENCES = {
    "off": ["screen.checks="],
    "screening": [],
    "median": ["screen.checks=", "fusion.rule=median"],
    "trimmed mean": ["screen.checks=", "fusion.rule=trimmed_mean", "fusion.options={beta = 0.3}"],
    "gate": ["screen.checks=", "gate.protocol=frozen"],
}
DEMO = ["evaluate.protocols=frozen", "evaluate.every=2", "quorum=1", "finetune.max-examples=200"]
REAL_TASKS = (
    "20_newsgroups,ag_news,dbpedia,esnli,mnli,rotten_tomatoes,sst2,trec_coarse,tweet_sentiment,qnli"
)


def scores(experiment: str, folder: Path, *settings: str) -> tuple[dict[str, float], list[str]]:
    """Run; return the last base's score by task, and the refusals."""
    command = [COLD_FLOWER, "simulate", experiment, "--run-dir", str(folder)]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {}, [done.stderr.strip()[-300:]]
    rows = Journal(folder).rows(SCORES)
    last = max(row["iteration"] for row in rows)
    refused = [
        f"{row['iteration']} {row['contributor']}: {row['reason']}"
        for row in Journal(folder).rows(CONTRIBUTIONS)
        if row["verdict"] != "accepted"
    ]
    return {row["task"]: row["value"] for row in rows if row["iteration"] == last}, refused


def compared(found: dict[str, float], clean: dict[str, float]) -> tuple[float, float]:
    """Return the paired difference to the clean run: mean and standard error over tasks."""
    pairs = [found[task] - clean[task] for task in sorted(found.keys() & clean.keys())]
    return mean_and_sem([100 * pair for pair in pairs])


def matrix(
    experiment: str,
    folder: Path,
    base: list[str],
    attackers: list[str],
    attacks: dict[str, str],
    defences: dict[str, list[str]],
    tasks: str,
) -> bool:
    """Run every attack under every defence; by default nothing is lost."""
    honest = ",".join(name for name in tasks.split(",") if name not in attackers)
    clean, _ = scores(experiment, folder / "clean", *base, f"tasks={honest}")
    print(f"{experiment}: clean, without {attackers}: {json.dumps(clean)}", flush=True)
    good = True
    for name, what in attacks.items():
        table = ", ".join(f"{attacker} = {what}" for attacker in attackers)
        for defence, more in defences.items():
            run = folder / f"{name}-{defence.replace(' ', '-')}"
            settings = [*base, f"tasks={tasks}", *more, f"attacks={{{table}}}"]
            found, refused = scores(experiment, run, *settings)
            if not found:
                print(f"{name:11} {defence:13} the run stopped: {refused[0]}", flush=True)
                good &= defence != "screening"
                continue
            mean, sem = compared(found, clean)
            lost = mean < -2 * sem
            good &= not (lost and defence == "screening")
            print(
                f"{name:11} {defence:13} {mean:+6.1f} ± {sem:.1f} {'LOST' if lost else '    '} "
                f"{len(refused)} refused; {refused[:1]}",
                flush=True,
            )
    return good


def demo(folder: Path) -> bool:
    """Two of the demo's eight contributors attack, for two iterations."""
    tasks = "weather,kitchen,sports,travel,music,garden,office,cinema,harbour,market,forest,school"
    base = [*DEMO, "unseen=harbour,market,forest,school", "contributors-per-iteration=0"]
    return matrix("demo", folder / "demo", base, ["office", "music"], ATTACKS, DEFENCES, tasks)


def real(folder: Path) -> bool:
    """Two of ten real contributors attack: sign-flip, x10, label-flip."""
    where = os.environ["COLD_FLOWER_REAL"]
    base = [
        f"suite={where}/data/suite.toml", f"base-model={where}/models/minilm", "unseen=",
        "contributors-per-iteration=0", "quorum=1",
    ]  # fmt: skip
    chosen = {k: ATTACKS[k] for k in ("sign-flip", "x10", "label-flip")}
    defences = {k: DEFENCES[k] for k in ("off", "screening", "gate")}
    attackers = ["ag_news", "sst2"]
    return matrix("real_small", folder / "real", base, attackers, chosen, defences, REAL_TASKS)
