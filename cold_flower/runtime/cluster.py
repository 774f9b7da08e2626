"""A Ray cluster instead of this machine: RAY_ADDRESS names it (docs/clusters.md)."""

import json
import os
import subprocess
import sys

from cold_flower.errors import ConfigError, RunError
from cold_flower.runtime.resources import Allocation, Machine

_ASK = """
import json, ray
ray.init(log_to_driver=False, logging_level="ERROR")
print(json.dumps([node["Resources"] for node in ray.nodes() if node["Alive"]]))
"""
SECONDS = 60


def address() -> str:
    """Return the cluster that runs are to use; empty for this machine."""
    return os.environ.get("RAY_ADDRESS", "")


def nodes(cluster: str) -> list[tuple[int, int]]:
    """Return cores and GPUs of each node of a cluster.

    Raises:
        RunError: it does not answer.
    """
    way_out = "Start it with `ray start --head`, or unset RAY_ADDRESS to run on this machine."
    try:
        # In a process of its own: this one never becomes a Ray driver.
        done = subprocess.run(
            [sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(f"no Ray cluster answers at RAY_ADDRESS={cluster}. {way_out}") from error
    if done.returncode:
        said = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise RunError(f"the Ray cluster at RAY_ADDRESS={cluster} fails: {said} {way_out}")
    listed = json.loads(done.stdout.strip().splitlines()[-1])
    return [(int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in listed]


def allocate(
    cluster: str, there: list[tuple[int, int]], *, cpus: int | None, gpus: float | None
) -> Allocation:
    """Choose what each contributor gets; Ray then makes as many workers as fit on each node.

    Args:
        cluster: its address.
        there: cores and GPUs of each node.
        cpus: cores for each; None is one.
        gpus: fraction of a GPU for each; None is a whole one where there are any.

    Raises:
        ConfigError: no node has that much, or the fraction leaves a part of each GPU over.
    """
    cores_each = 1 if cpus is None else cpus
    some = any(held for _, held in there)
    gpus_each = float(some) if gpus is None else gpus
    if 0 < gpus_each < 1 and abs(1 / gpus_each - round(1 / gpus_each)) > 1e-9:
        # Flower would make a worker of what is left of two GPUs, and Ray could never place it.
        raise ConfigError(
            f"--gpus-per-contributor is {gpus_each:g}: on a cluster it is 1/2, 1/4, 1/5, ... of one"
        )
    valid = cores_each >= 1 and 0 <= gpus_each <= 1
    workers = sum(
        min(cores // cores_each, int(held / gpus_each + 1e-9) if gpus_each else cores)
        for cores, held in there
        if valid
    )
    shown = ", ".join(f"{cores} cores and {held} GPUs" for cores, held in there) or "no node"
    if not workers:
        raise ConfigError(
            f"no node of the Ray cluster has {cores_each} cores and {gpus_each:g} GPUs for a "
            f"contributor; there: {shown} (--cpus-per-contributor, --gpus-per-contributor)"
        )
    machine = Machine(sum(cores for cores, _ in there), float("inf"))
    why = f"a Ray cluster of {len(there)} nodes: {shown}"
    return Allocation(workers, cores_each, gpus_each, machine, why, cluster=cluster)
