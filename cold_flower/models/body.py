"""A model's body, by name: what is fused (paper, section 3).

The **body** is ``model.base_model`` of the sequence-classification model. Its tensors go by
their names in the state dict, without the model's prefix, in float32. Tied aliases and integer
buffers are left out. The rest of that model is the **head**, which every dataset has of its own.

Tensors of the starting model that are outside the body (an LM head, RoBERTa's pooler) are never
fused. A text-to-text model (T5) has no head: all of it is the body.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cold_flower.errors import ModelError

State = Mapping[str, Tensor]


def prefix_of(model: Any) -> str:
    """Return what stands before the body's names in the model's own state dict."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def body_of(model: Any) -> dict[str, Tensor]:
    """Return the body's tensors: float32, on the CPU."""
    body: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in model.base_model.state_dict().items():
        address = (tensor.data_ptr(), tensor.shape) if tensor.numel() else (name, None)
        if tensor.is_floating_point() and address not in seen:
            seen.add(address)
            body[name] = tensor.detach().float().cpu()
    return body


def load_body(model: Any, body: State) -> None:
    """Put a body into a model.

    Raises:
        ModelError: a name or a shape that does not fit, by name.
    """
    own = body_of(model)
    if differing := own.keys() ^ body.keys():
        raise ModelError(f"the body does not fit: {min(differing)} is in one model only")
    for name, tensor in own.items():
        if tensor.shape != body[name].shape:
            raise ModelError(
                f"the body does not fit: {name} has shape {tuple(body[name].shape)}, expected "
                f"{tuple(tensor.shape)}"
            )
    # Not strict: aliases and integer buffers, which a body is without, stay as they are.
    model.base_model.load_state_dict(dict(body), strict=False)


def head_parameters(model: Any) -> list[nn.Parameter]:
    """Return the parameters outside the body."""
    body = set(map(id, model.base_model.parameters()))
    return [p for p in model.parameters() if id(p) not in body]
