"""Shared fixtures: small tensors, tiny random models, a Grid without Flower's engine."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # tests never reach for the network

import pytest
import torch
import transformers
from flwr.app import Error, Message, MessageType
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from cold_flower.data import demo
from cold_flower.models import demo as demo_model
from cold_flower.models.base import Base, load_base

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # a Message wants them

REAL = os.environ.get("COLD_FLOWER_REAL", "")
needs_real = pytest.mark.skipif(not REAL, reason="COLD_FLOWER_REAL names no folder of real data")


class FakeGrid(Grid):
    """Answers each message by calling ``client``; no process, no network.

    Args:
        client: takes a message; returns a reply, or None to stay silent.
        nodes: the node ids that are online.
        order: ``reversed`` answers the last message first.
    """

    def __init__(
        self, client: Callable[[Message], Message | None], nodes: Iterable[int], order: str = ""
    ) -> None:
        self.client = client
        self.nodes = list(nodes)
        self.order = order
        self.sent: list[Message] = []
        self._pending: dict[str, Message] = {}

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{len(self.sent)}"
            self.sent.append(message)
            self._pending[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = []
        for message_id in message_ids:
            last = [*self._pending][-1] if self._pending else ""
            if self.order == "reversed" and message_id != last:
                continue
            reply = self.client(self._pending[message_id])
            if reply is not None:
                del self._pending[message_id]
                replies.append(reply)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise AssertionError("deprecated in Flower")


def error_reply(message: Message, reason: str, code: int = 2) -> Message:
    return Message(Error(code, reason), reply_to=message)


def is_train(message: Message) -> bool:
    return bool(message.metadata.message_type == MessageType.TRAIN)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where workers share the files (``make test``): those with the most real runs first."""
    if hasattr(config, "workerinput"):
        real = Counter(item.path for item in items if "real" in item.keywords)
        items.sort(key=lambda item: -real[item.path])


@pytest.fixture(scope="session")
def tiny() -> Base:
    """The demo's base model: 2 layers of 64."""
    return load_base("demo")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("COLD_FLOWER_HOME", str(home))
    return home


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `cold-flower simulate` and `cold_flower.simulate` run here (tests/in_process.py)."""
    from tests.in_process import simulate

    monkeypatch.setattr("cold_flower.runtime.runner.simulate", simulate)


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Have another process hold a run directory's lock, as a run at work does."""
    hold = (
        "import sys; from pathlib import Path; from cold_flower.repository.journal import Journal; "
        "Journal(Path(sys.argv[1])).lock(); print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(run)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout and holder.stdout.readline() == "held\n"
        yield
        holder.communicate("\n")


_framed = {"bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2}


def _tiny_config(family: str) -> Any:
    words = len(demo_model.SPECIAL) + demo.CONCEPTS * demo.WORDS
    common = {"vocab_size": words, "max_position_embeddings": 40}
    usual = {
        **common,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "pad_token_id": 1,
    }
    made = {
        "bert": lambda: transformers.BertConfig(**usual),
        "roberta": lambda: transformers.RobertaConfig(**usual),
        "xlm-roberta": lambda: transformers.XLMRobertaConfig(**usual),
        "camembert": lambda: transformers.CamembertConfig(**usual),
        # Its layers share their weights; its embedding is narrower than they are.
        "albert": lambda: transformers.AlbertConfig(
            **usual, embedding_size=8, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
        ),
        "electra": lambda: transformers.ElectraConfig(**usual, embedding_size=8),
        "mpnet": lambda: transformers.MPNetConfig(**usual),
        # As DeBERTa-v3: relative positions alone, in buckets; no token types.
        "deberta-v2": lambda: transformers.DebertaV2Config(
            **usual,
            type_vocab_size=0,
            position_biased_input=False,
            relative_attention=True,
            position_buckets=4,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            norm_rel_ebd="layer_norm",
        ),
        # Local attention that is shorter than the texts, but in every second layer.
        "modernbert": lambda: transformers.ModernBertConfig(
            **{**usual, "num_hidden_layers": 3},
            local_attention=4,
            global_attn_every_n_layers=2,
            **_framed,
        ),
        # T5 1.0: the head shares the embedding.
        "t5": lambda: transformers.T5Config(
            vocab_size=words,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            pad_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        ),
        "distilbert": lambda: transformers.DistilBertConfig(
            **common, dim=16, hidden_dim=32, n_layers=2, n_heads=2, pad_token_id=1
        ),
    }
    return made[family]()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes a tiny random model of a class into a folder."""

    def write(family: str, class_name: str, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(class_name)
        torch.manual_seed(7)
        config = _tiny_config(family)
        for key, value in changes.items():
            setattr(config, key, value)
        model = getattr(transformers, class_name)(config)
        model.save_pretrained(folder)
        demo_model.tokenizer().save_pretrained(folder)
        return folder

    return write
