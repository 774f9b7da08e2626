"""The ClientApp: Flower messages in, a contributor's answers out."""

import math
import os
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from cold_flower import attacks
from cold_flower.config import PROTOCOLS, Config, split
from cold_flower.contributor import Contributor
from cold_flower.errors import ColdFlowerError, ConfigError, NoTaskError
from cold_flower.identity import code_sha256, versions
from cold_flower.model import device
from cold_flower.plan import resolve
from strategies import records
from strategies.fusion import fingerprint
from strategies.names import unknown

app = ClientApp()

_CLIENT_RAISED = 2  # flwr's code for an app that raised


def _answer(handle: Callable[[Message, Context], RecordDict]) -> Callable[..., Message]:
    """Turn an error the user can mend into a one-line error reply."""

    @wraps(handle)
    def reply(message: Message, context: Context) -> Message:
        full = False
        try:
            return Message(handle(message, context), reply_to=message)
        except ColdFlowerError as error:
            text = f"{type(error).__name__}: {error}"
        except torch.OutOfMemoryError as error:
            full = True
            text = (
                f"out of GPU memory ({str(error).split('. ')[0]}): lower "
                "finetune.micro-batch-size or finetune.max-length, or let fewer contributors "
                "share a GPU: a higher --gpus-per-contributor"
            )
        if full:  # now the traceback no longer keeps the model alive; others share this GPU
            torch.cuda.empty_cache()
        return Message(Error(_CLIENT_RAISED, text), reply_to=message)

    return reply


def _contributor(context: Context) -> Contributor:
    index = context.node_config.get("partition-id")
    if not isinstance(index, int):
        raise ConfigError(
            "this node has no partition-id: start it with --node-config 'partition-id=0'"
        )
    # Another team's ServerApp may have keys of its own.
    return Contributor(resolve(Config.from_flat(context.run_config, strict=False)), index)


def _body(message: Message) -> dict[str, Any]:
    return dict(records.unpack(message.content.array_records[records.ARRAYS]))


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
    body = _body(message)
    iteration = int(config.get("iteration", config.get("server-round", 1)))
    seed = int(config.get("seed", me.config.seed))

    def honest(who: Contributor, start: Mapping[str, torch.Tensor]) -> attacks.Answer:
        options = {"run": str(config.get("run", "")), "abandoned": config.get("abandoned", ())}
        return attacks.Answer(*who.finetune(start, iteration=iteration, seed=seed, **options))

    attack = attacks.of(me, iteration)
    answer = attack.answer(me, body, seed, honest) if attack else honest(me, body)
    answer.metrics["seconds"] = time.perf_counter() - started
    about = {
        "contributor": me.name,
        "iteration": iteration,
        "base": config.get("base") or fingerprint(body.items()),
        **_whereabouts(),
        **answer.about,
    }
    finite = {key: value for key, value in answer.metrics.items() if math.isfinite(value)}
    return records.train_reply(answer.body.items(), finite, about)


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
    body = _body(message)
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
