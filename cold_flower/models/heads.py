"""Kept heads (``finetune.head = "keep"``): a contributor's own classifiers, on its own disk.

Iteration k stores the head that it trained under its number. A later iteration begins with the
newest head from before it: that of k-1 where the contributor took part in k-1. So an iteration
that is repeated after a crash begins with the same head as the first time.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from cold_flower.errors import ConfigError, ModelError
from cold_flower.models.base import Base
from strategies.fusion import Weights, write_safetensors


def check(base: Base, choice: str) -> None:
    """Check that a contributor has a head of its own, where ``finetune.head`` says more of it.

    Raises:
        ConfigError: text to text has none.
    """
    if choice != "fresh" and base.text_to_text:
        raise ConfigError(
            f"finetune.head is {choice!r}, but base-model {base.name!r} is text to text and has no "
            "head of a contributor's own: its LM head is part of the body, which is fused. Set "
            "finetune.head = fresh"
        )


class Heads:
    """One contributor's heads in one run.

    Args:
        folder: the contributor's own.
        run: the run's id. It comes over the wire, so only its hash becomes part of a path.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._folder = folder / "heads" / hashlib.sha256(run.encode()).hexdigest()[:16]

    def save(self, iteration: int, model: Any) -> None:
        """Store the head of a trained model, all of it or nothing."""
        head = head_of(model)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{iteration:04d}.safetensors"
        write_safetensors(path, Weights(head).template(), head.items())

    def load_into(self, model: Any, iteration: int, abandoned: Collection[int] = ()) -> None:
        """Put the newest head from before ``iteration`` into a model, if there is any.

        Args:
            model: takes the head.
            iteration: the one that is about to be trained.
            abandoned: iterations that a rollback left behind; their heads fit other bodies.

        Raises:
            ModelError: it does not fit the model.
        """
        paths = {int(path.stem): path for path in self._folder.glob("[0-9]*.safetensors")}
        earlier = [n for n in paths if n < iteration and n not in abandoned]
        if not earlier:
            return
        newest = max(earlier)
        head = load_file(paths[newest])
        if _shapes(head) != _shapes(head_of(model)):
            raise ModelError(
                f"the kept head {paths[newest]} does not fit this model and task: remove it, or "
                "set finetune.head = fresh"
            )
        model.load_state_dict(head, strict=False)  # not strict: the body is not in it


def head_of(model: Any) -> dict[str, Tensor]:
    """Return the model's state outside its body, on the CPU; empty where the body is all."""
    if model.base_model is model:
        return {}
    prefix = f"{model.base_model_prefix}."
    return {
        name: tensor.detach().cpu()
        for name, tensor in model.state_dict().items()
        if not name.startswith(prefix)
    }


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
