"""The matrices that take too long for every commit: ``make acceptance``, run by hand.

    python -m tests.acceptance [demo] [clean] [determinism] [interrupt] [crash]
        [crash-asynchronous] [attacks] [fuzz] [disk] [bundle] [cluster] [real] [real-attacks]
        [sites] [sites-small]

- demo: five seeds; after the last iteration the fused base must beat the start frozen on
  seen tasks, frozen on unseen tasks and finetuned, by more than the standard error over
  tasks, for at least four.
- clean: twenty seeds of the demo, frozen alone: screening refuses nobody.
- determinism: one seed twice, the second time on one core, so that replies arrive in
  another order: the same sha256 of every base.
- interrupt: Ctrl-C, twice, before the run exists, while contributors finetune and while
  they evaluate: exit code 130, no process left, and after --resume the bases and scores of
  an uninterrupted run.
- crash: kill -9 the ServerApp, the SuperLink, a Ray worker, the runner and the whole tree, each
  before the first message, while contributors finetune, and while a base is fused, published
  and evaluated; the bases, scores and rule memory after --resume are those of a run left alone.
- crash-asynchronous: the same where nobody waits, while contributors finetune, a base is fused
  and others are at work: what had arrived is fused, and --replay gives the same bases.
- attacks: every attack under every defence; with screening, the default, nothing is lost.
- fuzz: 3,000 replies, manifests, suite files and config strings each.
- disk: a full disk stops a run with the last iteration intact.
- bundle: `flwr run` of the app bundle, unpacked elsewhere: the demo, to its end.
- cluster: the demo on two Ray nodes with a core each gives the bases of this machine.
- real: real_small with three seeds, nobody refused, and once under stock FedAvg (needs
  COLD_FLOWER_REAL).
- real-attacks: sign-flip, x10 and label-flip on ten real datasets, with and without screening, and
  with the gate; with screening nothing is lost (needs COLD_FLOWER_REAL).
- sites: tests/acceptance_sites.py: three SuperNodes with TLS, keys and real data; kills,
  restarts, certificates (needs COLD_FLOWER_REAL). sites-small: with the demo's data and model.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cold_flower.reporting.statistics import gains, mean_and_sem
from cold_flower.repository.bases import STATE, Repository
from cold_flower.repository.journal import CONTRIBUTIONS, PROGRESS, SCORES, Journal
from tests import attack
from tests.acceptance_sites import sites, sites_small
from tests.crash import crash, crash_asynchronous
from tests.test_bundle import unpacked
from tests.test_simulation import MARK, SMALL, marked

COLD_FLOWER = str(Path(sys.executable).parent / "cold-flower")


def run(folder: Path, experiment: str, *settings: str, prefix: tuple[str, ...] = ()) -> Path:
    """Run an experiment; return its directory."""
    command = [*prefix, COLD_FLOWER, "simulate", experiment, "--run-dir", str(folder)]
    for setting in settings:
        command += ["--set", setting]
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"{folder.name}: {time.monotonic() - started:.0f} s", flush=True)
    return folder


def gain(folder: Path, protocol: str, *groups: str) -> tuple[float, float]:
    """Return the last base's gain over the start, in points: mean and SEM over tasks."""
    rows = Journal(folder).rows(SCORES)
    last = max(row["iteration"] for row in rows)
    found = [g for group in groups for g in gains(rows, group, protocol, last)]
    mean, sem = mean_and_sem(found)
    return 100 * mean, 100 * sem


def demo(folder: Path) -> bool:
    """Five seeds of the demo."""
    good = 0
    for seed in range(5):
        done = run(folder / f"demo-{seed}", "demo", f"seed={seed}")
        figures = {
            "frozen seen": gain(done, "frozen", "seen"),
            "frozen unseen": gain(done, "frozen", "unseen"),
            "finetuned": gain(done, "finetuned", "seen", "unseen"),
            "few-shot": gain(done, "few-shot", "seen", "unseen"),
        }
        wanted = [v for k, v in figures.items() if k != "few-shot"]
        won = all(mean > sem for mean, sem in wanted)
        good += won
        shown = ", ".join(f"{k} {mean:+.1f} ± {sem:.1f}" for k, (mean, sem) in figures.items())
        print(f"seed {seed}: {shown}: {'yes' if won else 'NO'}", flush=True)
    print(f"fusing helps for {good} of 5 seeds")
    return good >= 4


def refused(folder: Path) -> list[str]:
    """Return the contributions that were not accepted."""
    rows = Journal(folder).rows(CONTRIBUTIONS)
    bad = [row for row in rows if row["verdict"] != "accepted"]
    print(f"{len(rows)} contributions, {len(bad)} refused", flush=True)
    return [f"{row['contributor']}: {row['reason']}" for row in bad]


def clean(folder: Path) -> bool:
    """Twenty seeds of the demo without an attacker."""
    quick = ("evaluate.protocols=frozen", "evaluate.every=2", "quorum=1")
    found = [
        refused(run(folder / f"clean-{seed}", "demo", f"seed={seed}", *quick)) for seed in range(20)
    ]
    print(f"refused: {[each for one in found for each in one]}")
    return not any(found)


def outcome(folder: Path) -> tuple[list[str], list[str]]:
    """Return what a run is judged by: the sha256 of each base, and all scores."""
    bases = [Repository(folder).manifest(i)["sha256"] for i in range(3)]
    return bases, sorted(json.dumps(row) for row in Journal(folder).rows(SCORES))


def determinism(folder: Path) -> bool:
    """One seed on all cores and on one."""
    runs = [
        run(folder / "two-cores", "demo"),
        run(folder / "one-core", "demo", prefix=("taskset", "-c", "0")),
    ]
    outcomes = [outcome(r) for r in runs]
    arrived = [[event["line"] for event in events(r)] for r in runs]
    orders = [[line.split()[1] for line in a if "finetuned in" in line] for a in arrived]
    print(f"bases {outcomes[0][0]}\narrived as {orders[0]}\n       and {orders[1]}")
    assert len(Journal(runs[0]).rows(CONTRIBUTIONS)) == 16
    return outcomes[0] == outcomes[1] and orders[0] != orders[1]


def events(folder: Path) -> list[dict[str, Any]]:
    """Read the events of a run that is going on."""
    return Journal(folder).rows(PROGRESS)


def interrupt(folder: Path) -> bool:
    """Ctrl-C at three moments."""
    want = outcome(run(folder / "uninterrupted", "demo"))
    moments = {
        "before-the-run": lambda events: True,
        "finetuning": lambda events: any(
            e.get("phase") == "finetune" and e.get("done") == 1 for e in events
        ),
        "evaluating": lambda events: any(
            e.get("phase") == "evaluate" and (e["iteration"], e.get("done")) == (1, 5)
            for e in events
        ),
    }
    good = True
    for name, reached in moments.items():
        there = folder / name
        command = [COLD_FLOWER, "simulate", "demo", "--run-dir", str(there)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # As in a terminal, also where this runs in the background, which ignores Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            start_new_session=True,  # Ctrl-C reaches the whole group, as from a terminal
            env={**os.environ, MARK: name},
        )
        time.sleep(8)
        while not reached(events(there)):
            time.sleep(0.1)
        started = time.monotonic()
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.3)
        said = process.communicate(timeout=60)[1].strip()
        took = time.monotonic() - started
        left = marked(name)
        kept = sorted(p.relative_to(there).as_posix() for p in there.glob("*"))
        inbox = [p.stem for p in there.glob("incoming/*/*")]
        print(f"{name}: exit {process.returncode} after {took:.1f} s, processes left {left}")
        print(f"  says: {said}\n  on disk: {kept}, inbox {inbox}")
        resume = ["--resume"] if (there / "config.json").exists() else []
        subprocess.run([*command, *resume], check=True, stdout=subprocess.DEVNULL)
        same = outcome(there) == want
        print(f"  resumed: same bases and scores: {same}", flush=True)
        good &= process.returncode == 130 and not left and same
    return good


def real(folder: Path) -> bool:
    """real_small on the real copies."""
    where = os.environ["COLD_FLOWER_REAL"]
    local = [f"suite={where}/data/suite.toml", f"base-model={where}/models/minilm"]
    good = True
    for name, more in (
        *((f"seed {seed}", [f"seed={seed}"]) for seed in range(3)),
        ("seed 0, FedAvg", ["fusion.strategy=flwr.serverapp.strategy:FedAvg"]),
    ):
        done = run(
            folder / f"real-{name.replace(', ', '-').replace(' ', '-')}",
            "real_small",
            *local,
            *more,
        )
        seen, unseen = gain(done, "frozen", "seen"), gain(done, "frozen", "unseen")
        print(
            f"{name}: seen {seen[0]:+.1f} ± {seen[1]:.1f}, unseen {unseen[0]:+.1f} ± {unseen[1]:.1f}"
        )
        good &= not refused(done) and ("FedAvg" in name or seen[0] > 2 * seen[1])
    return good


def crashes(folder: Path) -> bool:
    """The crash matrix."""

    def whole(run: Path) -> Any:
        state = (run / "iterations" / "0002" / STATE).read_bytes()
        return (outcome(run), hashlib.sha256(state).hexdigest())

    return crash(folder / "crash", whole, events)


def crashes_asynchronous(folder: Path) -> bool:
    """The crash matrix of runs in which nobody waits."""
    return crash_asynchronous(folder / "crash-asynchronous", events)


def fuzz(folder: Path) -> bool:
    """Whatever comes in is accepted, or refused with one error."""
    environment = {**os.environ, "COLD_FLOWER_FUZZ": "3000"}
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_fuzz.py"]
    return subprocess.run(command, env=environment).returncode == 0


def disk(folder: Path) -> bool:
    """Run into a full disk, a small tmpfs; make room; go on."""
    small = folder / "small-disk"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)], check=True)
    try:
        there = small / "run"
        command = [COLD_FLOWER, "simulate", "demo", *SMALL, "--run-dir", str(there)]
        for room in range(8, 24):  # the ballast leaves less and less
            ballast = small / "ballast"
            ballast.write_bytes(b"x" * (room << 20))
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                break
            subprocess.run(["rm", "-r", str(there)], check=True)
        said = done.stderr.strip().splitlines()[-1]
        head = Repository(there).latest()
        print(f"with {24 - room} MB: exit {done.returncode}, latest is {head}\n  says: {said}")
        ballast.unlink()
        resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True)
        print(f"  with room: exit {resumed.returncode} {resumed.stderr.strip()[-300:]}")
        return "space" in said and not resumed.returncode
    finally:
        subprocess.run(["umount", str(small)], check=True)


def cluster(folder: Path) -> bool:
    """Two Ray nodes on this machine, one core each, and a run directory that they share."""
    want = outcome(run(folder / "this-machine", "demo", *SMALL[1::2]))
    ray, port = str(Path(sys.executable).parent / "ray"), 6399  # Ray's workers take 10002 to 19999
    environment = {
        **os.environ,
        MARK: "cluster",
        "COLD_FLOWER_HOME": str(folder / "contributors"),
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray-"),
    }
    head = ["--head", f"--port={port}", "--include-dashboard=false"]
    try:
        for place in (head, [f"--address=127.0.0.1:{port}"]):
            start = [ray, "start", *place, "--num-cpus=1", "--num-gpus=0"]
            subprocess.run(start, check=True, env=environment, stdout=subprocess.DEVNULL)
        os.environ["RAY_ADDRESS"] = f"127.0.0.1:{port}"
        done = run(folder / "on-the-cluster", "demo", *SMALL[1::2])
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        for pid in marked("cluster"):
            os.kill(pid, signal.SIGKILL)
    workers = {row["worker"] for row in Journal(done).rows(CONTRIBUTIONS)}
    print(f"workers {workers}; same bases and scores: {outcome(done) == want}")
    return outcome(done) == want and len(workers) == 2


def bundle(folder: Path) -> bool:
    """The demo from the app bundle that `flwr build` makes, by `flwr run` alone."""
    here = folder / "bundle"
    here.mkdir()
    app = unpacked(here)
    environment = {
        **os.environ,
        MARK: "bundle",
        "FLWR_HOME": str(here / "flwr"),
        "COLD_FLOWER_HOME": str(here / "home"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": "41896",
        "FLWR_LOCAL_CONTROL_API_PORT": "41898",
    }
    environment.pop("PYTHONPATH", None)
    nodes = "num-supernodes=12 client-resources-num-cpus=1"
    command = [str(Path(sys.executable).parent / "flwr"), "run", str(app), "--stream"]
    command += ["--federation-config", nodes]
    try:
        subprocess.run(command, cwd=here, env=environment, capture_output=True, timeout=900)
    finally:
        for pid in marked("bundle"):
            os.kill(pid, signal.SIGKILL)
    (done,) = (here / "home" / "runs").iterdir()
    result = json.loads((done / "result.json").read_text())
    mean, sem = gain(done, "frozen", "seen")
    print(f"{result['status']}, frozen seen {mean:+.1f} ± {sem:.1f}")
    return result["status"] == "completed" and mean > sem


def main() -> None:
    """Run what is named, or all; exit with 1 if anything does not hold."""
    known = {
        "demo": demo,
        "clean": clean,
        "determinism": determinism,
        "interrupt": interrupt,
        "crash": crashes,
        "crash-asynchronous": crashes_asynchronous,
        "attacks": attack.demo,
        "fuzz": fuzz,
        "disk": disk,
        "bundle": bundle,
        "cluster": cluster,
        "sites-small": sites_small,
    }
    if "COLD_FLOWER_REAL" in os.environ:
        known |= {"real": real, "real-attacks": attack.real, "sites": sites}
    chosen = sys.argv[1:] or list(known)
    if unknown := [name for name in chosen if name not in known]:
        sys.exit(f"unknown here: {unknown}; there are {list(known)} (more with COLD_FLOWER_REAL)")
    folder = Path(tempfile.mkdtemp(prefix="cold-flower-acceptance-"))
    print(f"runs in {folder}")
    results = {name: known[name](folder) for name in chosen}
    print(results)
    sys.exit(not all(results.values()))


if __name__ == "__main__":
    main()
