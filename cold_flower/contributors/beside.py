"""What goes beside a body: a statistic of the training data, where the fusion rule needs one."""

from typing import Any

from torch import Tensor

from cold_flower.config import Finetune
from cold_flower.contributors.site import Site
from cold_flower.data.encode import EncodedSplits
from cold_flower.models import heads
from cold_flower.models.base import Base
from cold_flower.models.body import State
from cold_flower.models.classifier import classifier
from cold_flower.seeds import derive
from cold_flower.training import statistics
from strategies.fusion._statistics import prefix


def statistic(
    kind: str,
    base: Base,
    body: State,
    model: Any,
    data: EncodedSplits,
    *,
    name: str,
    seed: int,
    options: Finetune,
    site: Site | None,
) -> dict[str, Tensor]:
    """Return a statistic of a finetuned model on the training data, under its prefix.

    Args:
        kind: of `strategies.fusion._statistics.KINDS`.
        base: shape and tokenizer.
        body: the model's own.
        model: whose head it is computed with.
        data: of which the training examples are looked at, all or some.
        name: the contributor's.
        seed: of which examples are looked at, and of the labels drawn. A site's is its own.
        options: the recipe.
        site: its own settings, where it is a site of its own.

    Raises:
        LimitError: at a site, too few examples.
        ConfigError, DivergedError: see `cold_flower.training.statistics.statistic`.
    """
    plain = classifier(base, body, labels=data.labels, kind=data.kind, seed=seed, plain=True)
    plain.load_state_dict(heads.head_of(model), strict=False)
    found = statistics.statistic(
        kind,
        plain,
        data.train,
        regression=data.kind == "regression",
        seed=derive(seed, name, "statistic"),
        examples=_at_a_site(kind, len(data.train), site) if site else 0,
        micro_batch_size=options.micro_batch_size,
    )
    return {prefix(kind) + key: tensor for key, tensor in found.items()}


def _at_a_site(kind: str, there: int, site: Site) -> int:
    """Return how many examples a site looks at, at most; its minimum may be more than usual.

    Raises:
        LimitError: there are fewer than its minimum.
    """
    most = max(statistics.usual(kind), site.limits.min_examples)
    site.check(train=min(most, there))
    return most
