"""What a machine has to share: cores, memory, GPUs; within the limits of a container."""

import os
from dataclasses import dataclass
from pathlib import Path

from cold_flower.errors import ConfigError
from cold_flower.runtime.processes import ask


@dataclass(frozen=True)
class Machine:
    """What there is to share."""

    cores: int
    memory: float
    """Bytes of main memory that are available."""
    gpus: tuple[float, ...] = ()
    """Free bytes of each GPU."""
    bf16: bool = True
    """Contributors compute in 16 bit where `finetune.precision` leaves it to the hardware."""
    fake: int = 0
    """Where the GPUs are names only: the real cores, which all contributors compute on."""


def this_machine(fake_gpus: int = 0) -> Machine:
    """Look at this machine; ``fake_gpus`` pretends GPUs, to see the mapping without any.

    Pretended GPUs come with 8 cores each and share the main memory.

    Raises:
        ConfigError: GPUs are pretended beside real ones, or CUDA fails.
    """
    import torch

    from cold_flower.training.scoring import bf16_is_fast

    bf16 = bf16_is_fast(torch.device("cpu"))
    if fake_gpus:
        if torch.cuda.device_count():
            raise ConfigError("--fake-gpus is for machines without a GPU; there are some here")
        memory = _memory()
        share = memory / fake_gpus
        return Machine(8 * fake_gpus, memory, (share,) * fake_gpus, bf16, fake=_cores())
    if not torch.cuda.device_count():
        return Machine(_cores(), _memory(), bf16=bf16)
    try:  # in a process of its own: a CUDA context costs memory
        gpus = ask(_GPUS)
    except RuntimeError as error:
        raise ConfigError(
            f"there are GPUs here, but CUDA fails: {error}. CUDA_VISIBLE_DEVICES='' runs on cores."
        ) from error
    return Machine(_cores(), _memory(), tuple(map(float, gpus["free"])), gpus["bf16"])


_GPUS = """
import json, torch
print(json.dumps({
    "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
    "free": [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())],
}))
"""


def killed_for_memory() -> int:
    """Return how many processes the kernel has killed for lack of memory; where not known, 0."""
    try:
        counters = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    counts = dict(line.split() for line in counters.splitlines())
    return int(counts.get("oom_kill", 0))


def _cores() -> int:
    """Return the cores that this process may use (`taskset` and containers limit them)."""
    linux = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return max(1, min(cores, int(quota) // int(period))) if quota.isdigit() else cores


def _cgroup(name: str) -> str:
    """Return a limit of the container that this runs in; empty where there is none."""
    try:
        return (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return ""


def _memory() -> float:
    """Return the bytes of main memory that are available to this process."""
    free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    linux = Path("/proc/meminfo")
    if linux.exists():
        for line in linux.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024.0
    limit = _cgroup("memory.max")
    return min(free, float(limit)) if limit.isdigit() else free
