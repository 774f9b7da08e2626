"""``cold-flower site check``: all that a site will do, done here; nothing leaves.

Loads the data and the model, finetunes on a few examples, and says how long an iteration
would take, how much memory, whether the limits hold, and what would leave: every name,
shape and byte.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import replace

from cold_flower.config import Config
from cold_flower.contributors.contributor import Contributor
from cold_flower.contributors.own_code import imported
from cold_flower.contributors.site import Site
from cold_flower.errors import SiteError
from cold_flower.identity import code_sha256, versions
from cold_flower.models.classifier import device
from cold_flower.models.starting import starting_model
from cold_flower.runtime import resources
from cold_flower.runtime.machine import this_machine
from cold_flower.seeds import derive
from strategies import records

EXAMPLES = 64  # of the tiny finetuning


def rehearse(site: Site, config: Config) -> Iterator[str]:
    """Yield a line for each thing that works.

    Args:
        site: its settings.
        config: the recipe that is expected (the coordinator's), by default the paper's.

    Raises:
        ColdFlowerError: the first thing that does not.
    """
    site.apply_limits()
    yield f"site {site.name}: {site.path}"
    if site.app:
        imported(site.app, site.path.parent)
        yield f"the site's own ClientApp {site.app} answers; there is nothing of ours to rehearse"
        return
    me = Contributor(config, site=site)
    yield f"base model {me.config.base_model}: sha256 of shape and tokenizer {me.base.sha256}"
    data = me.splits()
    kind = f"labels {', '.join(data.labels)}" if data.kind == "classification" else data.kind
    yield (
        f"data: {len(data.train)} training, {len(data.dev)} dev, {len(data.test)} test examples; "
        f"{kind}"
    )
    _, body = starting_model(me.base, 0)
    few = replace(site.limits, max_examples=EXAMPLES, min_examples=0, min_test_examples=0)
    once = replace(me.config.finetune, max_epochs=1)
    rehearsing = Contributor(replace(config, finetune=once), site=replace(site, limits=few))
    started = time.perf_counter()
    trained, metrics = rehearsing.finetune(body, iteration=0, seed=derive(0, "check"))
    seconds = time.perf_counter() - started
    loop = f"trainer {site.trainer}" if site.trainer else "our loop"
    count = min(EXAMPLES, len(data.train))
    yield (
        f"finetuned on {count} examples with {loop}, on {device().type}, in {seconds:.1f} s; "
        f"train loss {metrics.get('train-loss', math.nan):.3f}"
    )
    yield _estimate(site, me, seconds / count, len(data.train))
    yield "what leaves in each iteration, and nothing else:"
    sent = {name: len(array.data) for name, array in records.pack(trained.items()).items()}
    yield f"  arrays: the body, {len(sent)} float32 tensors, {sum(sent.values())} bytes"
    yield f"  metrics: {', '.join(records.LISTED)}"
    yield "  contribution: contributor, iteration, base, device, visible-gpus, worker"
    yield "once, when asked who this is: name, task, metric, examples, tokens, unknown, cut,"
    yield "  protocol, versions, code, model, device, visible-gpus, worker"
    yield "of an evaluation: num-examples and scores; contributor, task, metric, seconds, device,"
    yield "  visible-gpus, worker"
    yield "the tensors of the body (name, shape, bytes):"
    for name, tensor in trained.items():
        yield f"  {name} {tuple(tensor.shape)} {sent[name]}"
    yield f"installed here: {versions()}, code sha256 {code_sha256()}"
    if site.dry_run:
        yield "dry-run is set: answers to train and evaluate are written down and not sent"


def _estimate(site: Site, me: Contributor, seconds: float, examples: int) -> str:
    """Say how much time and memory an iteration takes, of ``seconds`` an example.

    Raises:
        SiteError: it takes more memory than there is.
    """
    options = me.config.finetune
    least, most = seconds * examples, seconds * examples * options.max_epochs
    if options.max_seconds:
        least, most = min(least, options.max_seconds), min(most, options.max_seconds)
    machine = this_machine()
    footprint = resources.footprint(
        me.config,
        me.base,
        bf16=machine.bf16,
        cores=not machine.gpus,
        plain=bool(site.trainer),  # it gets the library's model
    )
    needed = footprint / resources.GB
    free = min(machine.gpus or (machine.memory,)) / resources.GB
    limit = site.limits.memory_gb
    if needed > min(free, limit or free):
        raise SiteError(
            f"an iteration takes an estimated {needed:.1f} GB of memory, there are {free:.1f} GB"
            + (f", limits.memory-gb is {limit:g}" if limit else "")
            + "; lower limits.micro-batch-size (say 16), or finetune.max-length"
        )
    return (
        f"an iteration takes an estimated {least:.0f} to {most:.0f} s (1 to {options.max_epochs} "
        f"epochs of {examples} examples) and {needed:.1f} GB of {free:.1f} GB"
    )
