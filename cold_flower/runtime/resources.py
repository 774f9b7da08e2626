"""How a simulation's contributors are mapped onto this machine's cores and GPUs.

Ray's fractions are bookkeeping: half a GPU means that two contributors see the same one,
not that either is held to half of its memory. So the automatic choice rests on an estimate.
"""

import math
from dataclasses import dataclass

from cold_flower.config import Config
from cold_flower.errors import ConfigError
from cold_flower.models.base import Base
from cold_flower.models.families import FIRST_TOKEN, OWN_ATTENTION
from cold_flower.runtime.machine import Machine
from strategies.fusion._statistics import packed

GB = 1e9
PROCESS = 0.6 * GB  # a worker before it has a model: libraries, or a CUDA context


@dataclass(frozen=True)
class Allocation:
    """How many contributors work at once, and what each gets."""

    workers: int
    cpus: int
    gpus: float
    """Fraction of a GPU; 0 is none."""
    machine: Machine
    why: str
    cluster: str = ""
    """Address of the Ray cluster that is used instead of this machine."""

    def federation(self, contributors: int) -> str:
        """Return Flower's ``--federation-config``; it admits exactly ``workers`` Ray actors."""
        each = (
            f"num-supernodes={contributors} client-resources-num-cpus={self.cpus} "
            f"client-resources-num-gpus={self.gpus}"
        )
        if self.cluster:  # its nodes have said what they have
            return each
        return (
            f"{each} init-args-num-cpus={self.workers * self.cpus} "
            f"init-args-num-gpus={len(self.machine.gpus)}"
        )


def parameters(base: Base) -> int:
    """Count a body's parameters, without making them."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModel.from_config(base.config).parameters())


def statistic(base: Base, kind: str) -> int:
    """Return the bytes of what a rule asks for beside a body (`strategies.fusion`), at most.

    Layers that read one input share a gram, which is counted here for each.
    """
    import torch
    from torch import nn
    from transformers import AutoModel

    if not kind:
        return 0
    if kind == "fisher":
        return 4 * parameters(base)
    with torch.device("meta"):
        layers = AutoModel.from_config(base.config).modules()
    shapes = [(one.in_features, one.out_features) for one in layers if isinstance(one, nn.Linear)]
    return 4 * sum(n if kind == "gram" and n > out else packed(n) for n, out in shapes)


def footprint(config: Config, base: Base, *, bf16: bool, cores: bool, plain: bool = False) -> float:
    """Estimate the bytes that one finetuning takes where it computes, all its words occurring.

    The process; weights, gradients, AdamW's two moments and the best weights so far, 4 bytes
    each, with a proximal term the base, and on cores the body that came; activations by token and
    layer, as Korthikanti et al. (2022, eq. 2) count them: so many bytes for each hidden unit, and
    where attention is written out (on cores) for each of its entries, of which
    `cold_flower.models.cores` keeps less than the library does. (What probes a head, a vector an
    example, is dropped before.) The constants, for weights of
    32 bit, are measured on cores; benchmarks/memory.py compares those of our own attention.

    Args:
        config: the run's.
        base: shape of the body.
        bf16: whether the hardware computes in 16 bit where it may choose.
        cores: whether there is no GPU to compute on.
        plain: whether the library's model is trained as it is.
    """
    options, shape = config.finetune, base.config
    length = min(options.max_length, base.tokenizer.model_max_length)
    at_once = min(options.micro_batch_size or options.batch_size, options.batch_size)
    tokens = at_once * length
    narrow = options.precision == "bf16" or (bf16 and options.precision == "auto")
    per_unit = 62 if narrow else 95
    if not plain and shape.model_type not in OWN_ATTENTION:
        per_entry = 5 if narrow else 9  # our attention
    else:
        per_entry = 12 if narrow else 14  # the library's
    entries = shape.num_attention_heads * length if cores else 0  # of attention, by token
    layers: float = shape.num_hidden_layers * (2 if shape.is_encoder_decoder else 1)
    if shape.model_type in FIRST_TOKEN and layers and not plain:
        layers -= 0.85  # of the last one little more than its input is kept
    activations = tokens * layers * (per_unit * shape.hidden_size + per_entry * entries)
    weights = (24 if cores else 20) * parameters(base)
    weights += 4 * parameters(base) if _pulled(config) else 0
    return PROCESS + weights + float(activations)


def _pulled(config: Config) -> bool:
    """Return whether finetuning keeps the base, for a proximal term."""
    if not config.fusion.strategy:
        return config.finetune.proximal_mu > 0
    from cold_flower.server.stock import proximal_mu  # with flwr; benchmarks run without it

    return proximal_mu(config) > 0


def allocate(
    machine: Machine,
    *,
    contributors: int,
    footprint: float,
    cpus: int | None = None,
    gpus: float | None = None,
) -> Allocation:
    """Choose how many contributors work at once.

    Without a GPU one per core; with GPUs as many on each as the estimate says fit. Never
    more than there is work for, nor than there are cores.

    Args:
        machine: from `this_machine`.
        contributors: how many could work at once.
        footprint: bytes of one finetuning.
        cpus: cores for each; None chooses.
        gpus: fraction of a GPU for each; None chooses.

    Raises:
        ConfigError: a fraction or a number of cores that cannot be placed.
    """
    _check(machine, cpus, gpus)
    if machine.gpus and gpus != 0:
        return _on_gpus(machine, contributors, footprint, cpus, gpus)
    return _on_cores(machine, contributors, footprint, cpus)


def _on_gpus(
    machine: Machine, contributors: int, footprint: float, cpus: int | None, gpus: float | None
) -> Allocation:
    count, free = len(machine.gpus), min(machine.gpus)
    on_each = max(1, int(free // footprint)) if gpus is None else int(1 / gpus + 1e-9)
    workers = min(on_each * count, machine.cores // (cpus or 1), contributors)
    # Spread over all GPUs: none stands idle while others are shared.
    on_each = math.ceil(workers / count)
    fraction = int(10_000 / on_each) / 10_000 if gpus is None else gpus  # Ray's resolution
    cpus = cpus or max(1, machine.cores // workers)
    there = f"{count} GPU(s) with at least {free / GB:.1f} GB free, {machine.cores} cores"
    if machine.fake:
        there = (
            f"{count} pretended GPU(s) with 8 cores each; in truth all contributors share this "
            f"machine's {machine.fake} core{'s' if machine.fake > 1 else ''} and its memory"
        )
    why = f"{there}; {_needs(footprint, on_each, free)}"
    return Allocation(workers, cpus, fraction, machine, why)


def _on_cores(
    machine: Machine, contributors: int, footprint: float, cpus: int | None
) -> Allocation:
    free = machine.memory
    workers = min(machine.cores // (cpus or 1), contributors, max(1, int(free // footprint)))
    gpus = "GPUs are left alone" if machine.gpus else "no GPU here"
    why = (
        f"{gpus}, {machine.cores} cores, {free / GB:.0f} GB of memory available; "
        f"{_needs(footprint, workers, free)}"
    )
    return Allocation(workers, cpus or 1, 0.0, machine, why)


def _needs(footprint: float, sharing: int, free: float) -> str:
    """Say what a contributor takes, and whether those that share the memory have enough."""
    takes = f"a contributor takes an estimated {footprint / GB:.1f} GB"
    if footprint * sharing <= free:
        return takes
    return (
        f"{takes}; MORE than fits: let fewer share it (--gpus-per-contributor, "
        "--cpus-per-contributor), or lower finetune.micro-batch-size or finetune.max-length"
    )


def _check(machine: Machine, cpus: int | None, gpus: float | None) -> None:
    if cpus is not None and not 1 <= cpus <= machine.cores:
        raise ConfigError(
            f"--cpus-per-contributor is {cpus}, expected 1 to {machine.cores}: "
            f"there are {machine.cores} cores"
        )
    if gpus is None:
        return
    if not 0 <= gpus <= 1 or 0 < gpus < 0.01:
        raise ConfigError(
            f"--gpus-per-contributor is {gpus:g}: a contributor uses one GPU or shares it, so "
            "expected is a fraction from 0.01 to 1, or 0 for none"
        )
    if gpus and not machine.gpus:
        raise ConfigError(
            f"--gpus-per-contributor is {gpus:g}, but there is no GPU here (torch sees none). "
            "Leave it away to run on cores; --fake-gpus N shows the mapping without GPUs."
        )


def describe(allocation: Allocation) -> str:
    """Say in one line what was chosen and why."""
    cores = f"{allocation.cpus} core{'s' if allocation.cpus > 1 else ''} each"
    share = f", {allocation.gpus:g} of a GPU each" if allocation.gpus else ""
    return f"{allocation.workers} contributors at once, {cores}{share} ({allocation.why})"
