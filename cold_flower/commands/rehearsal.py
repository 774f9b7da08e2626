"""``cold-flower site check``: all that a site will do, done here; nothing leaves.

Loads the data and the model, shows how the model reads them, finetunes on a few examples, and
says how long an iteration would take, how much memory, whether the limits hold, what is in doubt,
and what would leave: every name, shape and byte.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from statistics import mean

import torch

from cold_flower.config import Config
from cold_flower.contributors.contributor import Contributor
from cold_flower.contributors.own_code import imported
from cold_flower.contributors.site import Site
from cold_flower.data.encode import encode
from cold_flower.data.remarks import reading, remarks
from cold_flower.data.rows import read_task
from cold_flower.data.splits import Splits, load_splits
from cold_flower.errors import SiteError, first_line
from cold_flower.identity import code_sha256, versions
from cold_flower.models.classifier import device
from cold_flower.models.starting import starting_model
from cold_flower.runtime import resources
from cold_flower.runtime.machine import this_machine
from cold_flower.seeds import derive
from strategies import records

EXAMPLES = 64  # of the tiny finetuning
CLASSES, TOKENS = 20, 60  # that are shown
WARNING = "warning: "


def rehearse(site: Site, config: Config) -> Iterator[str]:
    """Yield a line for each thing that works; one that begins with `WARNING` is in doubt.

    Args:
        site: its settings.
        config: the recipe that is expected (the coordinator's), by default the paper's.

    Raises:
        ColdFlowerError: the first thing that does not.
    """
    with site.within_limits():
        yield f"site {site.name}: {site.path}"
        if site.app:
            imported(site.app, site.path.parent)
            yield f"the site's own ClientApp {site.app} answers; nothing of ours is rehearsed"
            return
        me = Contributor(config, site=site)
        yield f"base model {me.config.base_model}: sha256 of shape and tokenizer {me.base.sha256}"
        if not site.base_model and me.config.base_model == Config().base_model:
            yield (
                f"{WARNING}no base-model is set, so this is rehearsed with a toy: time, memory and "
                "what leaves are not those of the run; name the coordinator's in site.toml"
            )
        yield from _data(me)
        yield _memory(site, me)
        try:
            yield from _finetune(site, me, config)
        except torch.OutOfMemoryError as error:
            what = first_line(error).split(". ")[0]
            raise SiteError(f"out of GPU memory ({what}): lower limits.micro-batch-size") from error
        yield f"installed here: {versions()}, code sha256 {code_sha256()}"
        if site.dry_run:
            yield "dry-run is set: answers to train and evaluate are written down and not sent"


def _data(me: Contributor) -> Iterator[str]:
    """Show what of the data is used, and how the model reads it.

    Raises:
        ColdFlowerError: they cannot be used, or are fewer than the site's own limits say.
    """
    rows = load_splits(me.task, me.config)
    splits = {"training": rows.train, "dev": rows.dev, "test": rows.test}
    yield f"data: {', '.join(f'{len(part)} {name}' for name, part in splits.items())} examples"
    if me.task.kind == "regression":
        for name, part in splits.items():
            numbers = f"{min(part.labels):g} to {max(part.labels):g}, mean {mean(part.labels):g}"
            yield f"  {name}: numbers from {numbers}"
    else:
        yield f"  of each class: {', '.join(splits)}"
        counts = [Counter(part.labels) for part in splits.values()]
        for index, label in enumerate(rows.labels[:CLASSES]):
            yield f"  {label!r}: {', '.join(str(count[index]) for count in counts)}"
        if len(rows.labels) > CLASSES:
            yield f"  and {len(rows.labels) - CLASSES} classes more"
    yield "the first training example as the model reads it (shown here, never sent):"
    yield f"  {_read(me, rows)}"
    for remark in remarks(me.task, read_task(me.task)):
        yield f"{WARNING}{remark}"
    data = me.splits()
    for remark in reading(data.train):
        yield f"{WARNING}{remark}"
    if me.site and len(data.dev) < me.site.limits.min_test_examples:
        yield (
            "dev examples are fewer than limits.min-test-examples: whether it trained stays here, "
            "and a coordinator's gate gets no score"
        )


def _read(me: Contributor, rows: Splits) -> str:
    """Return the first training example's tokens as text, on one line, and its label."""
    (texts, *_), (label, *_) = rows.train.texts, rows.train.labels
    tokenizer, length = me.base.tokenizer, me.config.finetune.max_length
    ids = encode(tokenizer, [texts], [label], max_length=length).ids.tolist()
    cut = f" ... ({len(ids)} tokens)" if len(ids) > TOKENS else ""
    text = json.dumps(tokenizer.decode(ids[:TOKENS]), ensure_ascii=False)
    return (
        f"{text}{cut} -> {label if me.task.kind == 'regression' else repr(rows.labels[int(label)])}"
    )


def _finetune(site: Site, me: Contributor, config: Config) -> Iterator[str]:
    """Finetune on a few examples; list what would leave.

    Raises:
        ColdFlowerError: it fails, or its loss is not finite.
    """
    _, body = starting_model(me.base, 0)
    least = replace(site.limits, max_examples=EXAMPLES, min_examples=0, min_test_examples=0)
    once = replace(me.config.finetune, max_epochs=1)
    rehearsing = Contributor(replace(config, finetune=once), site=replace(site, limits=least))
    started = time.perf_counter()
    trained, metrics = rehearsing.finetune(body, iteration=0, seed=derive(0, "check"))
    seconds = time.perf_counter() - started
    loop = f"trainer {site.trainer}" if site.trainer else "our loop"
    examples = len(me.splits().train)
    count = min(EXAMPLES, examples)
    loss = f"train loss {metrics['train-loss']:.3f}" if "train-loss" in metrics else "no train-loss"
    yield (
        f"finetuned on {count} examples with {loop}, on {device().type}, in {seconds:.1f} s; {loss}"
    )
    if all(tensor.equal(body[name]) for name, tensor in trained.items()):
        yield f"{WARNING}the trained body is the base, unchanged: a coordinator refuses that"
    yield _time(me, seconds / count, examples)
    yield "what leaves in each iteration, and nothing else:"
    sent = {name: len(array.data) for name, array in records.pack(trained.items()).items()}
    yield f"  arrays: the body, {len(sent)} float32 tensors, {sum(sent.values())} bytes"
    few = len(me.splits().dev) < site.limits.min_test_examples
    stays = records.OF_DEV if few else ()
    made_on = [name for name in records.FACTS if name not in stays]
    asked = (*records.SCORED, records.SECONDS)
    always = [name for name in records.LISTED if name not in (*stays, *asked)]
    yield f"  metrics: {', '.join(always)}"
    yield f"  where the finetuned score of the base is due: {', '.join(records.SCORED)}"
    yield f"  contribution: contributor, iteration, base, {', '.join(made_on)}"
    yield "once, when asked who this is: name, task, metric, examples, tokens, unknown, cut,"
    yield "  protocol, versions, code, model, device, visible-gpus, worker"
    yield "of an evaluation: num-examples and scores; contributor, task, metric, seconds, device,"
    yield "  visible-gpus, worker"
    if not few:
        yield f"  of a finetuned one: {', '.join(records.TRAINED)}"
    if site.statistics:
        yield (
            f"where the fusion rule asks for it: a statistic of the data ({site.statistics}) "
            f"beside the body, {records.SECONDS}"
        )
    else:
        yield "no statistic of the data, which some fusion rules ask for: statistics is empty"
    yield "the tensors of the body (name, shape, bytes):"
    for name, tensor in trained.items():
        yield f"  {name} {tuple(tensor.shape)} {sent[name]}"


def _time(me: Contributor, seconds: float, examples: int) -> str:
    """Say how much time an iteration takes, of ``seconds`` an example."""
    options = me.config.finetune
    least, most = seconds * examples, seconds * examples * options.max_epochs
    if options.max_seconds:
        least, most = min(least, options.max_seconds), min(most, options.max_seconds)
    return (
        f"an iteration takes an estimated {least:.0f} to {most:.0f} s (1 to {options.max_epochs} "
        f"epochs of {examples} examples)"
    )


def _memory(site: Site, me: Contributor) -> str:
    """Say how much memory an iteration takes.

    Raises:
        SiteError: more than there is.
    """
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
    return f"an iteration takes an estimated {needed:.1f} GB of {free:.1f} GB of memory"
