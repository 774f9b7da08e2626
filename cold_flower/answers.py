"""What a contributor answers to each message, and thereby all that leaves it.

- query: who this is, what it runs, how many examples and tokens it has;
- train: the finetuned body and a few numbers (`records.LISTED`), never data, never the head;
- evaluate: scores.

At a site of its own (`cold_flower.contributors.site`) every answer passes `Egress` on its way out,
and of an error only the kind leaves.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from torch import Tensor

from cold_flower.config import PROTOCOLS, Config, split
from cold_flower.contributors.contributor import Contributor, Metrics
from cold_flower.contributors.egress import Egress, only_listed, redacted
from cold_flower.contributors.own_code import called, imported
from cold_flower.contributors.site import Site, load_site
from cold_flower.data.plan import resolve
from cold_flower.errors import ColdFlowerError, ConfigError, NoTaskError, SiteError
from cold_flower.identity import code_sha256, versions
from cold_flower.models.body import State
from cold_flower.models.classifier import device
from cold_flower.repository import by_reference
from strategies import records
from strategies.contributions import INCOMING, Contribution, Start, Store
from strategies.fusion import fingerprint
from strategies.names import unknown

_CLIENT_RAISED = 2  # flwr's code for an app that raised
Handler = Callable[[Message, Context, Site | None], RecordDict]


def _answer(handle: Handler) -> Callable[[Message, Context], Message]:
    """Send what a handler returns; of an error that the user can mend, one line."""

    @wraps(handle)
    def reply(message: Message, context: Context) -> Message:
        egress = Egress()
        try:
            site = _site(context)
            if site is None:
                content = handle(message, context, None)
            else:
                egress = Egress(site.name, dry_run=site.dry_run, statistics=split(site.statistics))
                with site.within_limits():
                    if site.app:
                        content = _own_app(site, message, context)
                    else:
                        content = handle(message, context, site)
            answer = Message(content, reply_to=message)
            if site:  # the last thing that can fail: what is written down leaves
                kind = str(message.metadata.message_type).partition(".")[0]
                egress.release(kind, content, message.content)
            return answer
        except Exception as error:
            cause = line = _line(error)
            at_site = _site_file(context) is not None
            if at_site:
                cause, line = redacted(error, line)
            elif not isinstance(error, ColdFlowerError | torch.OutOfMemoryError):
                raise
        # Not above, where the error's traceback still holds the model, and memory may be short.
        torch.cuda.empty_cache()
        if at_site:
            try:
                egress.tell(cause, line)
            except OSError as unwritten:  # a full disk; Flower would send the error's text
                print(f"cold-flower: the log cannot be written: {unwritten}", file=sys.stderr)
                line = "OSError: this site's own log cannot be written"
        return Message(Error(_CLIENT_RAISED, line), reply_to=message)

    return reply


def _line(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"out of GPU memory ({str(error).split('. ')[0]}): lower "
            "finetune.micro-batch-size or finetune.max-length, or let fewer contributors "
            "share a GPU: a higher --gpus-per-contributor"
        )
    return f"{type(error).__name__}: {error}"


def _own_app(site: Site, message: Message, context: Context) -> RecordDict:
    """Have the ClientApp of a site's own answer instead of ours (docs/messages.md)."""
    beside = site.path.parent
    answer = called(site.app, imported(site.app, beside), message, context, beside=beside)
    if not isinstance(answer, Message) or answer.has_error():
        reason = answer.error.reason if isinstance(answer, Message) else type(answer).__name__
        raise SiteError(f"app {site.app!r} gave no answer: {reason}")
    content: RecordDict = answer.content
    return content


def _site_file(context: Context) -> Path | None:
    """Return the site.toml that the node's own configuration names, where it does."""
    path = context.node_config.get("site")
    return Path(path) if isinstance(path, str) else None


def _site(context: Context) -> Site | None:
    """Return the site's own settings, where the node's own configuration names them."""
    path = _site_file(context)
    if path is None:
        return None
    try:
        return load_site(path)
    except Exception as error:
        raise ConfigError(  # what does not fit may be a label, or another word of the site's own
            "this node's site.toml cannot be used: the details are in the site's own log"
        ) from error


def _contributor(message: Message, context: Context, site: Site | None) -> Contributor:
    keys = {**context.run_config}
    asked = records.config_of(message.content, records.CONFIG)
    if records.EXPLICIT in asked:
        keys["explicit"] = str(asked[records.EXPLICIT])
    # Another team's ServerApp may have keys of its own.
    config = _pulled(Config.from_flat(keys, strict=False), asked.get(records.PROXIMAL_MU))
    if site:
        return Contributor(config, site=site)
    index = context.node_config.get("partition-id")
    if not isinstance(index, int):
        raise ConfigError(
            "this node has no partition-id and no site: start it with --node-config "
            "'partition-id=0', or 'site=\"<absolute path>/site.toml\"'"
        )
    return Contributor(resolve(config), index)


def _pulled(config: Config, mu: Any) -> Config:
    """Return the configuration with the proximal term that a message asks for, if it does."""
    own = config.finetune.proximal_mu
    if mu is None or mu == own:
        return config
    if own:
        raise ConfigError(
            f"finetune.proximal-mu is {own:g}, but the message asks for "
            f"{records.PROXIMAL_MU} = {mu}: give one"
        )
    return Config.from_flat({**config.flat(), "finetune.proximal-mu": mu})


def _base(message: Message, me: Contributor) -> dict[str, Tensor]:
    """Return the base that a message carries, or names (`cold_flower.repository.by_reference`)."""
    asked = records.config_of(message.content, records.CONFIG)
    if records.REFERENCE not in asked:
        return dict(records.unpack(message.content.array_records[records.ARRAYS]))
    if me.site:  # the run directory's path comes from the coordinator
        raise ConfigError("bodies by reference (transport = 'shared-dir') are for simulations")
    return by_reference.base(me.config.run_dir, int(asked[records.REFERENCE]), str(asked["base"]))


def _whereabouts() -> dict[str, str | int]:
    """Return what this process computes on; a Ray worker sees the GPU it was given."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {"device": device().type, "visible-gpus": visible, "worker": os.getpid()}


@_answer
def query(message: Message, context: Context, site: Site | None) -> RecordDict:
    """Say who this is and what it runs; reads and tokenises the data, to count it."""
    try:
        me = _contributor(message, context, site)
    except NoTaskError:
        return RecordDict({records.CONTRIBUTOR: ConfigRecord({"protocol": records.PROTOCOL})})
    train = me.splits().train
    stated: dict[str, Any] = {
        "name": me.name,
        "task": me.task.name,
        "examples": len(train),
        "tokens": len(train.ids),
        "unknown": train.unknown,
        "cut": train.cut,
        "metric": me.task.metric,
        "protocol": records.PROTOCOL,
        "versions": versions(),
        "code": code_sha256(),
        "model": me.base.sha256,
        **_whereabouts(),
    }
    return RecordDict({records.CONTRIBUTOR: ConfigRecord(stated)})


@_answer
def train(message: Message, context: Context, site: Site | None) -> RecordDict:
    """Finetune from the base on the own task; send back the body."""
    started = time.perf_counter()
    me = _contributor(message, context, site)
    asked = records.config_of(message.content, records.CONFIG)
    base = _base(message, me)
    iteration = int(asked.get("iteration", asked.get("server-round", 1)))
    seed = int(asked.get("seed", me.config.seed))
    more = {
        "run": str(asked.get("run", "")),
        "abandoned": asked.get("abandoned", ()),
        "scored": bool(asked.get(records.SCORE)),
        "statistic": str(asked.get(records.STATISTIC, "")),
    }

    def finetune(who: Contributor, start: State) -> tuple[dict[str, Tensor], Metrics]:
        return who.finetune(start, iteration=iteration, seed=seed, **more)

    claims: dict[str, Any] = {}
    if me.config.attacks and not site:  # a rehearsal; a site never loads what does harm
        from cold_flower.contributors import attacks

        answer = attacks.answer(me, base, finetune, iteration=iteration, seed=seed)
        body, metrics, claims = answer.body, answer.metrics, answer.claims
    else:
        body, metrics = finetune(me, base)
    stopped = {"stopped": metrics["stopped"]} if "stopped" in metrics else {}
    listed = only_listed({**metrics, "seconds": time.perf_counter() - started})
    stated = {
        "contributor": me.name,
        "iteration": iteration,
        "base": asked.get("base") or fingerprint(base.items()),
        **_whereabouts(),
        **stopped,
        **claims,
    }
    if records.REFERENCE not in asked:
        return records.train_reply(body.items(), listed, stated)
    store = Store(Path(me.config.run_dir) / INCOMING, iteration)
    kind = str(asked.get(records.STATISTIC, ""))
    mine = Contribution(
        me.name,
        metrics=listed,
        facts=records.facts(stated),
        statistic=kind,
        start=Start(iteration, stated["base"]),
    )
    stated[records.XXH3] = store.offer(mine, body)
    return records.train_reply(None, listed, stated)


@_answer
def evaluate(message: Message, context: Context, site: Site | None) -> RecordDict:
    """Score the base on the own test data, or dev data; only the scores leave."""
    started = time.perf_counter()
    me = _contributor(message, context, site)
    asked = records.config_of(message.content, records.CONFIG)
    protocols = split(str(asked.get("protocols", me.config.evaluate.protocols)))
    for name in protocols:
        if name not in PROTOCOLS:
            raise ConfigError(unknown("protocol", name, PROTOCOLS))
    rows = str(asked.get("split", "test"))
    if rows not in ("test", "dev"):
        raise ConfigError(unknown("split", rows, ("test", "dev")))
    iteration = int(asked.get("iteration", asked.get("server-round", 0)))
    seed = int(asked.get("seed", me.config.seed))
    scores, facts = me.evaluate(
        _base(message, me), protocols, iteration=iteration, seed=seed, split=rows
    )
    stated: dict[str, Any] = {
        "contributor": me.name,
        "task": me.task.name,
        "metric": me.task.metric,
        "seconds": time.perf_counter() - started,
        **facts,
        **_whereabouts(),
    }
    return RecordDict(
        {records.METRICS: MetricRecord(dict(scores)), records.CONTRIBUTOR: ConfigRecord(stated)}
    )
