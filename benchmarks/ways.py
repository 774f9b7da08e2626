"""What `benchmarks.gpu` has workers measure, beside finetuning and its variants.

Each prepares, and returns what is measured at every "go".
"""

import gc
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch.profiler import ProfilerActivity
from transformers import RobertaConfig

from benchmarks import machine
from benchmarks.work import SHAPES, random
from benchmarks.workers import Answer
from cold_flower.config import Config, Finetune
from cold_flower.models.base import Base
from cold_flower.models.classifier import device
from cold_flower.runtime.resources import footprint
from cold_flower.training import scoring
from cold_flower.training.finetune import finetune


def matmul(seed: int) -> Callable[[], Answer]:
    """Measure the rate of products, in FLOP/s."""
    return lambda: {"flops": machine.matmul_rate()}


def memory(batches: list[int], shape: str, seed: int) -> Callable[[], Answer]:
    """Measure the peak of finetunings on 128 tokens, ever larger batches; bytes, and the estimate.

    All words occur, and the best weights are kept, as the estimate assumes.
    """
    length, words = 128, SHAPES[shape]["vocab_size"]
    base = Base("", RobertaConfig(**SHAPES[shape]), SimpleNamespace(model_max_length=512), "")

    def run() -> Answer:
        said = {}
        for batch in sorted(batches):
            gc.collect()  # the model before, a circle
            torch.cuda.empty_cache()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            work = random(max(2 * batch, words // length + 1), length, shape)
            work.train.ids.copy_(torch.arange(len(work.train.ids)) % (words - 4) + 4)
            options = Finetune(batch_size=batch, max_epochs=1, max_length=length)
            finetune(
                work.model(), work.train, work.train.take(range(batch)), options=options,
                metric="accuracy", seed=seed,
            )  # fmt: skip
            config, on = Config(finetune=options), device()
            estimated = footprint(
                config, base, bf16=scoring.bf16_is_fast(on), cores=on.type == "cpu"
            )
            said[str(batch)] = {"estimated": estimated, "measured": machine.peak_bytes()}
        return said

    return run


def evaluation(batches: list[int], examples: int, shape: str, seed: int) -> Callable[[], Answer]:
    """Measure a pass without training in batches of each size, in examples a second."""
    work = random(examples, 0, shape)
    model = work.model()
    data = work.train.to(model.device)

    def run() -> Answer:
        rates = {}
        for size in batches:
            scoring.EVALUATION_BATCH = size
            taken = machine.seconds(lambda: scoring.logits_of(model, data, "auto"))
            rates[str(size)] = len(data) / taken
        return rates

    run()
    return run


def profile(batch: int, examples: int, shape: str, seed: int) -> Callable[[], Answer]:
    """Measure where the time of twelve steps at MNLI's lengths goes: the fifteen largest.

    Of torch's operations the time on the GPU (without one on the core) of their own.
    """
    work = random(min(examples, 12 * batch), 0, shape)
    model = work.model()
    options = Finetune(batch_size=batch, max_epochs=1)
    gpu = torch.cuda.is_available()

    def loop() -> None:
        finetune(model, work.train, None, options=options, metric="accuracy", seed=seed)

    def run() -> Answer:
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
        with torch.profiler.profile(activities=kinds) as seen:
            seconds = machine.seconds(loop)
        own = "self_device_time_total" if gpu else "self_cpu_time_total"  # microseconds
        events = [e for e in seen.key_averages() if str(e.device_type).endswith("CPU")]
        total = sum(getattr(e, own) for e in events)
        events.sort(key=lambda e: getattr(e, own), reverse=True)
        top = [
            {"name": e.key, "share": round(getattr(e, own) / total, 4), "calls": e.count}
            for e in events[:15]
        ]
        return {"busy": total / 1e6 / seconds, "top": top}

    loop()
    return run
