"""A contributor: its task and its data, what it finetunes and scores. Knows nothing of Flower.

What it keeps (tokenised data, heads) lies under ``COLD_FLOWER_HOME``, in a folder of its name.
"""

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cold_flower.config import Config, Finetune
from cold_flower.contributors import tokens
from cold_flower.contributors.folder import private
from cold_flower.contributors.site import Site
from cold_flower.contributors.trainer import Job, train
from cold_flower.data.encode import Encoded, EncodedSplits
from cold_flower.data.plan import plan
from cold_flower.data.splits import check_few_shot, load_splits
from cold_flower.data.task import Task
from cold_flower.errors import NoTaskError
from cold_flower.identity import home
from cold_flower.models import heads, text_to_text
from cold_flower.models.base import Base, load_base
from cold_flower.models.body import State, body_of
from cold_flower.models.classifier import classifier
from cold_flower.models.heads import Heads
from cold_flower.seeds import derive
from cold_flower.training import probe, protocols, statistics
from cold_flower.training.clock import deadline, left
from cold_flower.training.finetune import Outcome
from cold_flower.training.scoring import DivergedError, knowing_nothing
from strategies import records
from strategies.fusion._statistics import prefix

Metrics = dict[str, float | str]


class Contributor:
    """One contributor of a run.

    Args:
        config: the run's, resolved.
        index: its partition id; at a site of its own, 0.
        folder: where each contributor has a folder of its own; by default `home`.
        site: its own settings, where it is a site of its own: they win over the run's.
    """

    def __init__(
        self, config: Config, index: int = 0, folder: Path | None = None, site: Site | None = None
    ) -> None:
        self.config = site.apply(config) if site else config
        self.name, self.task = (site.name, site.task) if site else _planned(config, index)
        self._shard = index if self.config.partition.kind == "shards" else None
        self._folder = (folder or home()) / self.name
        self.site = site
        self.base: Base = load_base(self.config.base_model)

    def splits(self, iteration: int = 0, *, evaluation: bool = False) -> EncodedSplits:
        """Return the tokenised data; tokenised once, then read from the own folder.

        Args:
            iteration: with ``partition.fresh`` every iteration has rows of its own, which
                are not stored. At a site only those of its data as they are now stay stored.
            evaluation: with ``partition.fresh``, the rows beside those of the contributors.
        """
        if self.config.partition.fresh:
            shard = self.config.partition.shards if evaluation else self._shard
            return self._tokenised(shard, iteration)
        path = self._folder / f"tokens-{self.digest()}.safetensors"
        if self.site:
            private(self._folder)
            tokens.delete_others(path)
        while (data := tokens.read(path, self.task)) is None:
            tokens.save(self._tokenised(self._shard), path)
            if not self.site:
                tokens.prune(self._folder.parent, tokens.kept(self.config))
        if self.site:
            self.site.check(train=len(data.train), test=len(data.test))
        return data

    def digest(self) -> str:
        """Return what names the tokenised data (`tokens.digest`)."""
        return tokens.digest(self.task, self._shard, self.config, self.base)

    def _tokenised(self, shard: int | None, iteration: int = 0) -> EncodedSplits:
        data = load_splits(self.task, self.config, shard, iteration)
        return tokens.encoded(data, self.task, self.config, self.base)

    def finetune(
        self,
        body: State,
        *,
        iteration: int,
        seed: int,
        run: str = "",
        abandoned: Collection[int] = (),
        scored: bool = False,
        statistic: str = "",
    ) -> tuple[dict[str, Tensor], Metrics]:
        """Finetune from ``body`` on the own task; return the new body and its metrics.

        The head stays here (paper, section 3: every dataset has its own). It is made
        fresh; with ``finetune.head = probe`` it is then trained on the frozen body (LP-FT: Kumar et
        al. 2022, arXiv 2202.10054); with ``keep`` it is that of an earlier iteration of ``run``
        that is not ``abandoned``, by a rollback.

        Its draws are those by which `evaluate` scores ``body`` under ``finetuned`` (section 4.3:
        the same procedure). ``scored``: that score is among the metrics, if nothing pulled the
        finetuning towards ``body``.

        ``statistic``: of the own training data, which the fusion rule needs; its tensors are under
        its prefix among the body's.

        Raises:
            ConfigError: the site does not let that statistic leave, or the model has none.
        """
        heads.check(self.base, self.config.finetune.head)
        text_to_text.check_statistic(self.base, statistic)
        if statistic and self.site:
            self.site.check_statistic(statistic)
        if self.site and self.site.trainer:
            return self._own_trainer(self.site, body, statistic, iteration=iteration, seed=seed)
        data, kept = self.splits(iteration), Heads(self._folder, run)
        model, outcome = self._train(body, data, kept, iteration, seed, abandoned)
        if self.site:  # a clock may have stopped it early
            self.site.check(train=outcome.examples)
        if self.config.finetune.head == "keep":
            kept.save(iteration, model)
        metrics = {"num-examples": len(data.train), "train-loss": outcome.train_loss}
        # A strategy of somebody's own may ask for a term of which the configuration says nothing.
        if scored and not self.config.finetune.proximal_mu:
            with suppress(DivergedError):  # of test alone: the body is sound, and the score due
                metrics["finetuned"] = protocols.on_test(model, data, self.config.finetune)
                metrics["num-test-examples"] = len(data.test)
        trained, facts = body_of(model), {"steps": outcome.steps, **outcome.facts()}
        if statistic:
            started = time.perf_counter()
            # Which rows are looked at is a site's own matter, as all rows that it uses.
            own = self.config.seed if self.site else derive(seed, iteration)
            trained |= self._statistic(statistic, trained, model, data, own)
            metrics[records.SECONDS] = time.perf_counter() - started
        return trained, metrics | self._facts(facts, len(data.dev))

    def _statistic(
        self, kind: str, body: State, model: Any, data: EncodedSplits, seed: int
    ) -> dict[str, Tensor]:
        """Return a statistic of a finetuned model on its training data, under its prefix.

        Raises:
            LimitError: at a site, too few examples.
            ConfigError, DivergedError: see `cold_flower.training.statistics.statistic`.
        """
        site, there = self.site, len(data.train)
        most = site.looked_at(statistics.usual(kind), there) if site else 0
        plain = classifier(
            self.base, body, labels=data.labels, kind=data.kind, seed=seed, plain=True
        )
        plain.load_state_dict(heads.head_of(model), strict=False)
        found = statistics.statistic(
            kind,
            plain,
            data.train,
            regression=data.kind == "regression",
            seed=derive(seed, self.name, "statistic"),
            examples=most,
            micro_batch_size=self.config.finetune.micro_batch_size,
        )
        return {prefix(kind) + key: tensor for key, tensor in found.items()}

    def _train(
        self,
        body: State,
        data: EncodedSplits,
        kept: Heads,
        iteration: int,
        seed: int,
        abandoned: Collection[int],
    ) -> tuple[Any, Outcome]:
        """Finetune with the head that ``finetune.head`` wants; return the model."""
        derived = self._draws(seed, iteration)

        def begin(model: Any, options: Finetune) -> Finetune:
            if options.head == "probe":
                return self._probe(model, data.train, derived)
            if options.head == "keep":
                kept.load_into(model, iteration, abandoned)
            return options

        return protocols.finetuned(self.base, body, data, self.config.finetune, derived, begin)

    def _probe(self, model: Any, train: Encoded, derived: int) -> Finetune:
        """Train the head on the frozen body; return the recipe, with the time that is left."""
        options = self.config.finetune
        until = deadline(options)
        probe.probe_head(
            model,
            train,
            options.precision,
            options=self.config.probe,
            batch_size=options.batch_size,
            seed=derive(derived, "probe"),
            micro_batch_size=options.micro_batch_size,
            until=until,
        )
        return left(options, until)

    def _own_trainer(
        self, site: Site, body: State, statistic: str, *, iteration: int, seed: int
    ) -> tuple[dict[str, Tensor], Metrics]:
        """Have the site's own trainer work; no head is kept for it."""
        data = load_splits(self.task, self.config)
        site.check(train=len(data.train), test=len(data.test))
        derived = self._draws(seed, iteration)
        model = classifier(
            self.base,
            body,
            labels=data.labels,
            kind=self.task.kind,
            seed=derive(derived, "head"),
            plain=True,
        )
        options = self.config.finetune
        if options.head == "probe":
            options = self._probe(model, self.splits(iteration).train, derived)
        job = Job(
            model=model,
            body=body,
            tokenizer=self.base.tokenizer,
            train=data.train,
            dev=data.dev,
            labels=data.labels,
            options=options,
            iteration=iteration,
            seed=derive(derived, "run"),
            statistic=statistic,
        )
        trained, metrics = train(site.trainer, site.path.parent, job)
        return trained, self._facts(metrics, len(data.dev))

    def evaluate(
        self, body: State, chosen: list[str], *, iteration: int, seed: int, split: str = "test"
    ) -> tuple[dict[str, float], dict[str, float | str]]:
        """Score ``body`` on the own test data under each protocol, with heads made fresh.

        Args:
            body: the base.
            chosen: the protocols.
            iteration: whose base it is; with ``partition.fresh`` also which rows.
            seed: the run's.
            split: ``test``, or ``dev`` for the gate.

        Returns:
            The scores, with the number of examples that they were measured on; and of
            ``finetuned`` what tells whether it trained (`Outcome.facts`).

        Raises:
            DivergedError: on ``test``, a model's loss or outputs are not finite.
            LimitError: at a site, too few rows to be scored on.
        """
        data = self.splits(iteration, evaluation=split == "test")
        if split == "dev":
            if self.site:
                self.site.check(dev=len(data.dev))
            data = replace(data, test=data.dev)
        if "few-shot" in chosen:
            check_few_shot(self.task, self.config, len(data.train))
        # The same at every iteration, so that only the body makes the difference.
        same = derive(seed, self.name, "evaluate")
        seeds = {name: derive(same, name) for name in chosen}
        if split == "test":  # the gate sets bases of several iterations against each other
            seeds["finetuned"] = self._draws(seed, iteration + 1)  # of who begins from this base
        try:
            scores, facts = protocols.evaluate(self.base, body, data, chosen, self.config, seeds)
        except DivergedError:
            if split == "test":
                raise
            # A candidate that computes NaN has the lowest score there is: the gate leaves it.
            scores, facts = dict.fromkeys(chosen, -1.0 if data.metric == "pearson" else 0.0), {}
        return {"num-examples": len(data.test), **scores}, self._facts(facts, len(data.dev))

    def _draws(self, seed: int, iteration: int) -> int:
        """Return the seed of a contribution's draws.

        Each iteration has its own. If they were always the same, the body would learn to fit that
        one head: it then knows dev before the first step, and what finetunes it with another head
        finds a worse base than ``finetuned`` says.
        """
        return derive(seed, iteration, self.name, "train")

    def _facts(self, facts: Mapping[str, float | str], dev: int) -> Metrics:
        """Return facts of a finetuning as they may leave: none of a site's few dev rows."""
        if not self.site or dev >= self.site.limits.min_test_examples:
            return {**facts}
        return {key: value for key, value in facts.items() if key not in records.OF_DEV}

    def knowing_nothing(self) -> float:
        """Return what always the same answer scores on the own dev data."""
        data = self.splits()
        return knowing_nothing(data.metric, data.dev.labels)


def _planned(config: Config, index: int) -> tuple[str, Task]:
    """Return name and task of a partition id."""
    planned = plan(config)
    if not 0 <= index < len(planned.names):
        raise NoTaskError(
            f"partition-id {index} has no task: there are {len(planned.names)} contributors "
            f"({', '.join(planned.names)})"
        )
    name = planned.names[index]
    return name, planned.tasks[name]
