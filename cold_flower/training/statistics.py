"""Statistics of a contributor's data that some fusion rules ask for, computed where the data are.

A rule names the kind: ``fisher`` (Matena, Raffel, arXiv 2111.09832) or ``gram`` (Jin et al., arXiv
2212.09849). Of the library's plain model: ours computes one token alone in its last layer and cuts
the vocabulary, and both would give other statistics. Forms: `strategies.fusion._statistics`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cold_flower.data.encode import Encoded, sorted_batches
from cold_flower.errors import ConfigError
from cold_flower.models.body import body_of
from cold_flower.models.text_to_text import TextToText
from cold_flower.seeds import derive, shuffled
from cold_flower.training.scoring import DivergedError

EXAMPLES = {"fisher": 256, "gram": 1024}
"""At most so many training examples are looked at, drawn from the seed."""
BATCH = 16


def statistic(
    kind: str,
    model: Any,
    data: Encoded,
    *,
    regression: bool,
    seed: int,
    examples: int = 0,
    micro_batch_size: int = 0,
) -> dict[str, Tensor]:
    """Return a statistic of a finetuned model on its training data, by tensor, without prefix.

    Args:
        kind: ``fisher``, ``gram`` or ``gram-full``.
        model: finetuned; the library's own, not made faster. It is put in evaluation mode.
        data: the training examples.
        regression: its output is a number, not a score for each class.
        seed: of which examples are looked at, and of the labels drawn.
        examples: how many, at most; 0: `EXAMPLES`.
        micro_batch_size: how many in a forward pass, at most; 0: `BATCH`.

    Raises:
        ConfigError: a kind that there is none of. (Grams of text to text:
            `cold_flower.models.text_to_text.check_statistic`.)
        DivergedError: it is not finite.
    """
    known: dict[str, Callable[[], dict[str, Tensor]]] = {
        "fisher": lambda: _fisher(model, chosen, regression, derive(seed, "labels")),
        "gram": lambda: _gram(model, chosen, size, full=False),
        "gram-full": lambda: _gram(model, chosen, size, full=True),
    }
    if kind not in known:
        raise ConfigError(f"no statistic {kind!r}: there are {', '.join(known)}")
    most, size = examples or usual(kind), min(BATCH, micro_batch_size or BATCH)
    chosen = data.take(shuffled(len(data), seed, "examples")[:most]).to(model.device)
    model.eval()
    found = known[kind]()
    if bad := [name for name, tensor in found.items() if not tensor.isfinite().all()]:
        raise DivergedError(f"the {kind} of {bad[0]} is not finite")
    return found


def usual(kind: str) -> int:
    """Return how many training examples a statistic looks at, at most, where nobody says it."""
    return EXAMPLES[kind.partition("-")[0]]


def _fisher(model: Any, data: Encoded, regression: bool, seed: int) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information: the mean squared gradient of log p(y | x).

    One y is drawn for each example, from the model's own p. Squared is the gradient of one example
    at a time: that of a batch has products of two examples in its square. Of a regression (a
    Gaussian of variance 1) the expectation over y is the square of the output's own gradient.
    """
    weights = dict(model.base_model.named_parameters())
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    random = torch.Generator().manual_seed(seed)
    with _Words(model, weights) as words:
        for index in range(len(data)):
            output = model(**data.batch([index])).logits[0].float()
            if regression:
                target = output.sum()
            else:
                chances = output.detach().softmax(0).cpu()
                label = int(torch.multinomial(chances, 1, generator=random))
                target = output.log_softmax(0)[label]
            by = [*weights.values(), *words.read]
            *gradients, read = torch.autograd.grad(target, by, allow_unused=True)
            if words.read:
                words.add_squares(squares[words.name], read)
            else:
                gradients.append(read)
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    squares[name].addcmul_(gradient, gradient)
    # A tensor that is no parameter, or that the output does not depend on, tells nothing.
    return {
        name: squares[name].div_(len(data)).cpu() if name in squares else torch.zeros_like(tensor)
        for name, tensor in body_of(model).items()
    }


class _Words:
    """The word embedding, by the rows that an example reads: of the rest the gradient is 0.

    As a matrix it would be the largest by far, and made anew for each example. Where it is used for
    more than reading words (T5), it is one of ``weights`` as any.
    """

    def __init__(self, model: Any, weights: dict[str, nn.Parameter]) -> None:
        self.name = ""
        self.read: list[Tensor] = []
        self._ids = torch.empty(0)
        self._layer: Any = None
        if not isinstance(model, TextToText):
            self._layer = model.get_input_embeddings()
            self.name = next(name for name, w in weights.items() if w is self._layer.weight)
            del weights[self.name]

    def __enter__(self) -> "_Words":
        if self._layer is not None:
            self._hook = self._layer.register_forward_hook(self._keep)
        return self

    def __exit__(self, *error: object) -> None:
        if self._layer is not None:
            self._hook.remove()

    def _keep(self, layer: Any, given: tuple[Any, ...], made: Tensor) -> Tensor:
        self._ids, leaf = given[0].ravel(), made.detach().requires_grad_()
        self.read[:] = [leaf]
        return leaf

    def add_squares(self, squares: Tensor, gradient: Tensor) -> None:
        """Add the squared gradient of each row, which is the sum over its places."""
        rows, places = self._ids.unique(return_inverse=True)
        whole = torch.zeros(len(rows), squares.shape[1], device=squares.device)
        whole.index_add_(0, places, gradient.reshape(len(self._ids), -1))
        squares[rows] += whole.square()


def _gram(model: Any, data: Encoded, size: int, *, full: bool) -> dict[str, Tensor]:
    """Return X^T X / tokens of the inputs X [tokens, n] of the body's linear layers.

    A forward pass has ``size`` examples. Padding is no token. Layers that read one and the same
    input, as an attention's query, key and value, share it. What a layer reads besides tokens
    (relative positions) does not count.
    """
    body = body_of(model)
    layers = {
        f"{name}.weight": module
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in body
    }
    inputs = _Inputs(full)
    hooks = [layer.register_forward_pre_hook(inputs.reader(key)) for key, layer in layers.items()]
    try:
        with torch.no_grad():
            for indices in sorted_batches(data.lengths(), size):
                batch = data.batch(indices)
                inputs.begin(batch["attention_mask"])
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs.grams()


class _Inputs:
    """What the layers read in a forward pass, added up."""

    def __init__(self, full: bool) -> None:
        self._full = full
        self._sums: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}
        self._readers: dict[str, list[str]] = {}  # of each input, by the layer that is first
        self._last: Tensor | None = None
        self._first = ""
        self._mask = torch.empty(0)

    def begin(self, mask: Tensor) -> None:
        """Begin a pass; ``mask`` [examples, tokens] says which are no padding."""
        self._mask, self._last = mask.bool(), None

    def reader(self, key: str) -> Callable[[Any, tuple[Any, ...]], None]:
        """Return what is called before a layer reads its input."""

        def read(layer: Any, given: tuple[Any, ...]) -> None:
            if given[0] is self._last and key not in self._sums:
                if key not in self._readers[self._first]:
                    self._readers[self._first].append(key)
                return
            tokens = self._tokens_of(given[0])
            if tokens is None:
                return
            self._last, self._first = given[0], key
            wide = layer.in_features > layer.out_features and not self._full
            x = tokens.float()
            found = x.square().sum(0) if wide else x.T @ x
            self._readers.setdefault(key, [key])
            self._sums[key] = self._sums[key] + found if key in self._sums else found
            self._tokens[key] = self._tokens.get(key, 0) + len(x)

        return read

    def _tokens_of(self, given: Tensor) -> Tensor | None:
        """Return the rows [tokens, n] of a layer's input that are tokens; None if none are."""
        mask = self._mask
        if given.shape[:-1] == mask.shape:
            return given[mask]
        if given.dim() == 2 and len(given) in (len(mask), int(mask.sum())):  # a pooler; unpadded
            return given
        return None

    def grams(self) -> dict[str, Tensor]:
        """Return the means, named by the layers that read each, packed."""
        found = {}
        for key, total in self._sums.items():
            mean = (total / self._tokens[key]).cpu()
            if mean.dim() == 2:
                mean = mean[tuple(torch.triu_indices(*mean.shape))]
            found[",".join(self._readers[key])] = mean
        return found
