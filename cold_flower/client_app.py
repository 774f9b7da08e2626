"""The ClientApp: Flower messages in, a contributor's answers out."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from cold_flower.config import PROTOCOLS, Config, split
from cold_flower.contributors import attacks
from cold_flower.contributors.contributor import Contributor
from cold_flower.contributors.egress import Outgoing, only_listed
from cold_flower.contributors.site import Site, imported, load_site
from cold_flower.data.plan import resolve
from cold_flower.errors import ColdFlowerError, ConfigError, NoTaskError, SiteError
from cold_flower.identity import code_sha256, versions
from cold_flower.models.classifier import device
from cold_flower.repository import by_reference
from strategies import records
from strategies.contributions import INCOMING, Contribution, Store
from strategies.fusion import fingerprint
from strategies.names import unknown

app = ClientApp()

_CLIENT_RAISED = 2  # flwr's code for an app that raised


def _answer(handle: Callable[[Message, Context], RecordDict]) -> Callable[..., Message]:
    """Turn an error the user can mend into a one-line error reply.

    At a site of its own (`cold_flower.contributors.site`) the answer passes its gate
    (`Outgoing`), and no error's details leave.
    """

    @wraps(handle)
    def reply(message: Message, context: Context) -> Message:
        full, gate = False, None
        try:
            site = _site(context)
            gate = Outgoing(site) if site else None
            if site and site.app:
                content = _ask(site, message, context)
            else:
                content = handle(message, context)
            if gate:
                _pass(gate, message, content)
            return Message(content, reply_to=message)
        except ColdFlowerError as error:
            text = gate.error(error) if gate else f"{type(error).__name__}: {error}"
        except torch.OutOfMemoryError as error:
            full = True
            if gate:
                gate.error(error)
            text = (
                f"out of GPU memory ({str(error).split('. ')[0]}): lower "
                "finetune.micro-batch-size or finetune.max-length, or let fewer contributors "
                "share a GPU: a higher --gpus-per-contributor"
            )
        except Exception as error:
            if gate is None:
                raise
            text = gate.error(error)  # Flower would send its text, which may quote data
        if full:  # now the traceback no longer keeps the model alive; others share this GPU
            torch.cuda.empty_cache()
        return Message(Error(_CLIENT_RAISED, text), reply_to=message)

    return reply


def _ask(site: Site, message: Message, context: Context) -> RecordDict:
    """Have the ClientApp of a site's own answer instead (docs/messages.md)."""
    site.apply_limits()
    answer = imported(site.app, site.path.parent)(message, context)
    if not isinstance(answer, Message) or answer.has_error():
        said = answer.error.reason if isinstance(answer, Message) else type(answer).__name__
        raise SiteError(f"app {site.app!r} gave no answer: {said}")
    content: RecordDict = answer.content
    return content


def _pass(gate: Outgoing, message: Message, content: RecordDict) -> None:
    """Check and write down an answer before it leaves the site."""
    kind = str(message.metadata.message_type).partition(".")[0]
    gate.check(kind, content, message.content)
    config = records.config_of(message.content, records.CONFIG)
    about: dict[str, Any] = {k: v for k, v in config.items() if k in ("run", "iteration")}
    bodies = content.array_records.values()
    gate.record(kind, content, about, "".join(fingerprint(records.unpack(b)) for b in bodies))


def _site(context: Context) -> Site | None:
    """Return the site's own settings, where the node's own configuration names them."""
    path = context.node_config.get("site")
    if not isinstance(path, str):
        return None
    try:
        return load_site(Path(path))
    except ColdFlowerError as error:
        print(f"cold-flower: {error}", file=sys.stderr, flush=True)
        raise SiteError(  # what does not fit may be a label, or another word of the site's own
            "this node's site.toml cannot be used: the details are in the site's own log"
        ) from error


def _contributor(context: Context) -> Contributor:
    # Another team's ServerApp may have keys of its own.
    config = Config.from_flat(context.run_config, strict=False)
    if site := _site(context):
        site.apply_limits()
        return Contributor(config, site=site)
    index = context.node_config.get("partition-id")
    if not isinstance(index, int):
        raise ConfigError(
            "this node has no partition-id and no site: start it with --node-config "
            "'partition-id=0', or 'site=\"<absolute path>/site.toml\"'"
        )
    return Contributor(resolve(config), index)


def _body(message: Message, me: Contributor) -> dict[str, Any]:
    """Return the base that a message carries, or names (`cold_flower.repository.by_reference`)."""
    about = records.config_of(message.content, records.CONFIG)
    if records.REFERENCE not in about:
        return dict(records.unpack(message.content.array_records[records.ARRAYS]))
    if me.site:  # the run directory's path comes from the coordinator
        raise ConfigError("bodies by reference (transport = 'shared-dir') are for simulations")
    return by_reference.base(me.config.run_dir, int(about[records.REFERENCE]), str(about["base"]))


def _whereabouts() -> dict[str, str | int]:
    """Return what this process computes on; a Ray worker sees the GPU it was given."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {"device": device().type, "visible-gpus": visible, "worker": os.getpid()}


@app.query()
@_answer
def query(message: Message, context: Context) -> RecordDict:
    """Say who this is and what it runs; reads and tokenises the data, to count it."""
    try:
        me = _contributor(context)
    except NoTaskError:
        return RecordDict({records.CONTRIBUTOR: ConfigRecord({"protocol": records.PROTOCOL})})
    train = me.splits().train
    about: dict[str, Any] = {
        "name": me.name,
        "task": me.task.name,
        "examples": len(train),
        "tokens": len(train.ids),
        "metric": me.task.metric,
        "protocol": records.PROTOCOL,
        "versions": versions(),
        "code": code_sha256(),
        "model": me.base.sha256,
        **_whereabouts(),
    }
    return RecordDict({records.CONTRIBUTOR: ConfigRecord(about)})


@app.train()
@_answer
def train(message: Message, context: Context) -> RecordDict:
    """Finetune from the base on the own task; send back the body, never the head."""
    started = time.perf_counter()
    me = _contributor(context)
    config = records.config_of(message.content, records.CONFIG)
    body = _body(message, me)
    iteration = int(config.get("iteration", config.get("server-round", 1)))
    seed = int(config.get("seed", me.config.seed))

    def honest(who: Contributor, start: Mapping[str, torch.Tensor]) -> attacks.Answer:
        options = {"run": str(config.get("run", "")), "abandoned": config.get("abandoned", ())}
        return attacks.Answer(*who.finetune(start, iteration=iteration, seed=seed, **options))

    attack = attacks.of(me, iteration)
    answer = attack.answer(me, body, seed, honest) if attack else honest(me, body)
    answer.metrics["seconds"] = time.perf_counter() - started
    metrics = only_listed(answer.metrics)
    about = {
        "contributor": me.name,
        "iteration": iteration,
        "base": config.get("base") or fingerprint(body.items()),
        **_whereabouts(),
        **answer.about,
    }
    if records.REFERENCE not in config:
        return records.train_reply(answer.body.items(), metrics, about)
    store = Store(Path(me.config.run_dir) / INCOMING, iteration)
    mine = Contribution(me.name, metrics=metrics, whereabouts=records.whereabouts(about))
    about["sha256"] = store.offer(mine, answer.body, about["base"])
    return records.train_reply(None, metrics, about)


@app.evaluate()
@_answer
def evaluate(message: Message, context: Context) -> RecordDict:
    """Score the body on the own test data; only the scores leave."""
    started = time.perf_counter()
    me = _contributor(context)
    config = records.config_of(message.content, records.CONFIG)
    chosen = split(str(config.get("protocols", me.config.evaluate.protocols)))
    for name in chosen:
        if name not in PROTOCOLS:
            raise ConfigError(unknown("protocol", name, PROTOCOLS))
    seed = int(config.get("seed", me.config.seed))
    iteration = int(config.get("iteration", config.get("server-round", 0)))
    split_name = str(config.get("split", "test"))
    if split_name not in ("test", "dev"):
        raise ConfigError(unknown("split", split_name, ("test", "dev")))
    body = _body(message, me)
    scores = me.evaluate(body, chosen, iteration=iteration, seed=seed, split=split_name)
    about = {
        "contributor": me.name,
        "task": me.task.name,
        "metric": me.task.metric,
        "seconds": time.perf_counter() - started,
        **_whereabouts(),
    }
    return RecordDict(
        {
            records.METRICS: MetricRecord(dict(scores)),
            records.CONTRIBUTOR: ConfigRecord(dict(about)),
        }
    )
