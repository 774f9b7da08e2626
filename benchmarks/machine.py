"""What this machine is, and the most that it does: products a second, memory taken."""

import os
import platform
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from cold_flower.training.scoring import bf16_is_fast


def name() -> str:
    """Return the kind of machine: its GPU, else its cores."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    bf16 = " with AVX512-BF16" if torch.cpu._is_avx512_bf16_supported() else ""
    return f"{cores} cores of {(names or [platform.machine()])[0]}{bf16}"


def wait() -> None:
    """Wait until a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(run: Callable[[], object]) -> float:
    """Return how long something takes, a GPU's share of it included."""
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def matmul_rate() -> float:
    """Measure products of 8192 x 8192 (1024 on cores) in the precision of ``auto``, in FLOP/s."""
    from cold_flower.models.classifier import device  # loads transformers; the rest does without

    on = device()
    size, often, tries = (8192, 20, 10) if on.type == "cuda" else (1024, 5, 5)
    precision = torch.bfloat16 if bf16_is_fast(on) else torch.float32
    a = torch.randn(size, size, device=on, dtype=precision)

    def multiply() -> None:
        for _ in range(often):
            a @ a

    # The first ones load kernels; others may share the machine.
    return 2 * size**3 * often / min(seconds(multiply) for _ in range(tries))


def peak_bytes() -> float:
    """Return the most memory that this process has taken where it computes.

    Resident memory without a GPU; with one what torch reserved there, and a CUDA context (that of
    each process that is on the GPU, so let this one be alone).
    """
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        context = total - free - torch.cuda.memory_reserved()
        return float(torch.cuda.max_memory_reserved() + context)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def anonymous(pid: int) -> int:
    """Return the bytes of anonymous memory of a process; 0 where it has ended."""
    with suppress(OSError, IndexError, ValueError):
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024
    return 0
