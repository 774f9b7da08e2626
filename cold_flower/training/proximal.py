"""The proximal term of FedProx: a contribution is pulled towards the base it began from.

Li et al., Federated Optimization in Heterogeneous Networks, arXiv 1812.06127, eq. 2: a contributor
minimises its loss + mu/2 * ||w - w_base||^2. The term's gradient, mu * (w - w_base), is added to
the loss's in float32: exact, without a graph of its own. It is added before the gradients are
clipped, as if it stood in the loss; no micro-batch adds it twice. The loss that is reported is the
task's alone, so it compares with that of a run without the term.

The paper has one model. Here the sum is over the body: the head is the contributor's own and has
no base to stay near. What is frozen does not move and is left out, and a tensor that is used twice
(tied) counts once.
"""

from typing import Any


class Proximal:
    """Pulls a model's body towards the weights that it has now.

    Args:
        model: a classifier; ``base_model`` is its body.
        mu: the weight of the term; 0 keeps nothing and changes nothing.
    """

    def __init__(self, model: Any, mu: float) -> None:
        self._mu = mu
        body = [p for p in model.base_model.parameters() if p.requires_grad] if mu else []
        self._pairs = [(weight, weight.detach().clone()) for weight in body]

    def add_to_gradients(self) -> None:
        """Add the term's gradient; a weight that got none in this step is not moved by it."""
        for weight, start in self._pairs:
            if weight.grad is not None:
                weight.grad.add_(weight.detach() - start, alpha=self._mu)
