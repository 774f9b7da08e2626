"""A Ray cluster instead of this machine: RAY_ADDRESS names it (docs/clusters.md)."""

import os
import subprocess

from cold_flower.errors import ConfigError, RunError
from cold_flower.runtime.machine import Machine
from cold_flower.runtime.processes import ask
from cold_flower.runtime.resources import Allocation

SECONDS = 60
_NODES = """
import json, ray
ray.init(log_to_driver=False, logging_level="ERROR")
print(json.dumps([node["Resources"] for node in ray.nodes() if node["Alive"]]))
"""


def address() -> str:
    """Return the cluster that runs are to use; empty for this machine."""
    return os.environ.get("RAY_ADDRESS", "")


def nodes(cluster: str) -> list[tuple[int, int]]:
    """Return cores and GPUs of each node of a cluster.

    Raises:
        RunError: it does not answer.
    """
    way_out = "Start it with `ray start --head`, or unset RAY_ADDRESS to run on this machine."
    try:  # in a process of its own: this one never becomes a Ray driver
        listed = ask(_NODES, SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"no Ray cluster answers at RAY_ADDRESS={cluster}. {way_out}") from error
    except RuntimeError as error:
        raise RunError(
            f"the Ray cluster at RAY_ADDRESS={cluster} fails: {error} {way_out}"
        ) from error
    return [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in listed]


def allocate(
    cluster: str, sizes: list[tuple[int, int]], *, cpus: int | None, gpus: float | None
) -> Allocation:
    """Choose what each contributor gets; Ray then makes as many workers as fit on each node.

    Args:
        cluster: its address.
        sizes: cores and GPUs of each node.
        cpus: cores for each; None is one.
        gpus: fraction of a GPU for each; None is a whole one where there are any.

    Raises:
        ConfigError: no node has that much, or the fraction leaves a part of each GPU over.
    """
    cores_each = 1 if cpus is None else cpus
    gpus_each = float(any(gpus for _, gpus in sizes)) if gpus is None else gpus
    if 0 < gpus_each < 1 and abs(1 / gpus_each - round(1 / gpus_each)) > 1e-9:
        # Flower would make a worker of what is left of two GPUs, and Ray could never place it.
        raise ConfigError(
            f"--gpus-per-contributor is {gpus_each:g}: on a cluster it is 1/2, 1/4, 1/5, ... of one"
        )

    def fit(cores: int, gpus: int) -> int:
        """Return how many contributors fit on a node."""
        by_cores = cores // cores_each
        return min(by_cores, int(gpus / gpus_each + 1e-9)) if gpus_each else by_cores

    valid = cores_each >= 1 and 0 <= gpus_each <= 1
    workers = sum(fit(*size) for size in sizes) if valid else 0
    shown = ", ".join(f"{cores} cores and {gpus} GPUs" for cores, gpus in sizes) or "no node"
    if not workers:
        raise ConfigError(
            f"no node of the Ray cluster has {cores_each} cores and {gpus_each:g} GPUs for a "
            f"contributor; there: {shown} (--cpus-per-contributor, --gpus-per-contributor)"
        )
    machine = Machine(sum(cores for cores, _ in sizes), float("inf"))
    why = f"a Ray cluster of {len(sizes)} nodes: {shown}"
    return Allocation(workers, cores_each, gpus_each, machine, why, cluster=cluster)
