"""The commands as functions: what ``import cold_flower`` offers (docs/api.md).

The command line calls the same functions; here arguments are Python's, and whatever is wrong
is a `ColdFlowerError`.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cold_flower.commands import data_statistics, offline
from cold_flower.commands.given import names, several, table
from cold_flower.commands.running import (
    AnyPath,
    absolute,
    configure,
    one_kind_of_error,
    run,
    suite_of,
)
from cold_flower.config import PROTOCOLS
from cold_flower.data.plan import naming_the_recipe
from cold_flower.errors import ConfigError, ModelError, RunError
from cold_flower.models.folder import Folder
from cold_flower.reporting.against import check as check_against
from cold_flower.reporting.run import Run, open_run
from cold_flower.repository.journal import CONFIG
from cold_flower.runtime import experiments
from cold_flower.runtime.processes import stoppable
from cold_flower.runtime.writable import check_writable
from strategies.fusion import Weights, load, write_safetensors
from strategies.names import unknown

if TYPE_CHECKING:
    from cold_flower.reporting.comparison import Comparison
    from cold_flower.runtime.candidates import Tuned


def simulate(
    experiment: AnyPath = "",
    settings: Mapping[str, Any] | None = None,
    *,
    run_dir: AnyPath | None = None,
    resume: bool = False,
    replay: AnyPath | None = None,
    cpus_per_contributor: int | None = None,
    gpus_per_contributor: float | None = None,
) -> Run:
    """Run an experiment on this machine, and return it when it is complete.

    Args:
        experiment: a shipped one (``cold-flower experiments``), or a TOML file.
        settings: keys and values that win over the experiment's (``cold-flower keys``).
        run_dir: where the run goes; by default ``runs/NAME-TIME``.
        resume: continue the run in ``run_dir``.
        replay: instead of an experiment, a run whose arrivals are to be repeated: the same
            contributions from the same bases, and so the same bases to the bit.
        cpus_per_contributor: cores for each contributor at work; None chooses.
        gpus_per_contributor: fraction of a GPU for each; None chooses, 0 is none.

    Raises:
        ColdFlowerError: what is wrong, before anything started; or why the run failed.
        KeyboardInterrupt: it was interrupted; what arrived is kept, and ``resume`` goes on.

    Example:
        >>> run = cold_flower.simulate("demo", {"seed": 1, "iterations": 3})
        >>> print(run.gains("frozen", group="seen"))
    """
    from cold_flower.runtime.runner import Sharing

    config = configure(experiment, table("settings", settings), run_dir, resume, replay)
    again = f"call it again with run_dir={config.run_dir!r}, resume=True"
    return run(config, Sharing(cpus_per_contributor, gpus_per_contributor), again)


def compare(
    experiment: AnyPath,
    *,
    rules: str | Sequence[str] = (),
    stages: str | Sequence[str] = (),
    variants: Sequence[Mapping[str, Any]] = (),
    seeds: Sequence[int] = (0, 1, 2),
    equal_length: bool = False,
    settings: Mapping[str, Any] | None = None,
    run_dir: AnyPath | None = None,
    say: Callable[[str], object] = print,
) -> "Comparison":
    """Compare fusion rules with the plain mean; a second call runs only what is not done.

    Args:
        experiment: a shipped one, or a TOML file.
        rules: names of rules (``cold-flower rules``), or files or modules of one's own.
        stages: of the plain mean, such as ``momentum=0.5``.
        variants: any other keys and values, such as ``{"finetune.head": "keep"}``.
        seeds: each is run for the plain mean and for each of these.
        equal_length: make what a rule adds to the base as long as the plain mean.
        settings: keys and values that all have in common.
        run_dir: where the runs go; by default ``runs/compare-EXPERIMENT``.
        say: takes a line for each run.

    Raises:
        ColdFlowerError: what is wrong, before anything started; or which runs failed.
        KeyboardInterrupt: it was interrupted; what arrived is kept.

    Example:
        >>> found = cold_flower.compare("demo", rules=["ties"], stages=["momentum=0.5"])
        >>> found.to_pandas()
    """
    from cold_flower.runtime import compare as comparing
    from cold_flower.runtime.runner import Sharing

    with one_kind_of_error():
        others = [
            table("each of variants", one) for one in several("variants", variants, "mappings")
        ]
        compared = comparing.variants(
            names("rules", rules), names("stages", stages), others, equal_length=equal_length
        )
        each, keys = several("seeds", seeds, "whole numbers"), table("settings", settings)
        folder = absolute(run_dir) if run_dir else None
        planned = comparing.plan(str(experiment), compared, each, keys, folder)
        return comparing.run(planned, Sharing(), say, "the same call goes on")


def evaluate(
    model: AnyPath,
    *,
    suite: AnyPath,
    protocols: str | Sequence[str] = ("frozen", "finetuned"),
    against: Run | AnyPath | None = None,
    settings: Mapping[str, Any] | None = None,
    run_dir: AnyPath | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> Run:
    """Score a checkpoint on the tasks of a suite; a second call goes on after a stop.

    Args:
        model: a transformers folder, or a model of the hub.
        suite: a built-in one, or a suite file.
        protocols: of ``frozen``, ``finetuned`` and ``few-shot``.
        against: a run whose start this model is compared with: `Run.gains`, `Run.table`.
        settings: keys and values, such as ``{"tasks": "sst2,rte"}``.
        run_dir: where the scores go; by default ``runs/evaluate-MODEL``.
        say: takes a line for each thing that makes the comparison doubtful, before the start.

    Raises:
        ColdFlowerError: what is wrong; there is nothing to compare with.
        KeyboardInterrupt: it was interrupted; the scores so far are kept.

    Returns:
        A run without iterations: the model's scores are those of base 0.
    """
    from cold_flower.runtime.runner import Sharing

    with one_kind_of_error():
        other = open_run(against) if isinstance(against, str | Path) else against
        if other and not other.scores:
            raise RunError(f"{other.folder}: no scores there, nothing to compare with")
        folder = absolute(run_dir or Path("runs") / f"evaluate-{_name_of(model)}")
        name = str(suite)
        config = experiments.merge(
            {
                "experiment": "evaluate",
                "suite": suite_of(name),
                "base-model": str(model),
                "evaluate.protocols": ",".join(names("protocols", protocols)),
                "iterations": 0,
                "contributors-per-iteration": 0,
                "unseen": "",  # of a suite's recipe: here no task is seen
                **table("settings", settings),
                "run-dir": str(folder),
                "resume": (folder / CONFIG).exists(),
            }
        )
        for doubt in check_against(config, other) if other else ():
            say(doubt)
    return run(config, Sharing(), "the same call goes on", against=other)


def tune(
    *,
    suite: AnyPath,
    base_model: AnyPath,
    tasks: str | Sequence[str] = (),
    protocols: str | Sequence[str] = PROTOCOLS,
    learning_rates: Sequence[float] = (),
    epochs: Sequence[int] = (),
    budget: float = math.inf,
    settings: Mapping[str, Any] | None = None,
    run_dir: AnyPath | None = None,
    say: Callable[[str], object] = print,
) -> "Tuned":
    """Find learning rates and epochs that train, on a few tasks; a second call goes on.

    Args:
        suite: a built-in one, or a suite file.
        base_model: a folder, or a model of the hub.
        tasks: to try on; none draws four of those that contribute.
        protocols: whose recipe is looked for: ``frozen``, ``finetuned``, ``few-shot``.
        learning_rates: of the finetuning to try, instead of the usual ones.
        epochs: the same.
        budget: minutes; no trial begins after them.
        settings: keys and values, such as ``{"finetune.max-examples": 400}``.
        run_dir: where the trials are kept; by default ``runs/tune-SUITE``.
        say: takes a line for each trial.

    Returns:
        The recipe, with what it rests on: ``recipe``, ``toml()``, ``choices``.

    Raises:
        ColdFlowerError: what is wrong; or the budget ended too early.
        KeyboardInterrupt: it was interrupted; the trials so far are kept.
    """
    from cold_flower.runtime import tune as search

    name = str(suite)
    folder = absolute(run_dir or Path("runs") / f"tune-{Path(name).stem}")
    asked = names("protocols", protocols)
    rates = several("learning_rates", learning_rates, "numbers")
    passes = several("epochs", epochs, "whole numbers")
    if (rates or passes) and "finetuned" not in asked:
        raise ConfigError("learning rates and epochs to try are for finetuned, which is not asked")
    usual = search.GRIDS["finetuned"]
    grids = {**search.GRIDS, "finetuned": (rates or usual[0], passes or usual[1])}
    with one_kind_of_error():
        config = experiments.merge(
            {
                "experiment": "tune",
                "suite": suite_of(name),
                "base-model": str(base_model),
                **table("settings", settings),
                "run-dir": str(folder),
                "resume": (folder / CONFIG).exists(),
            }
        )
        check_writable(folder)
        with stoppable(), naming_the_recipe(config):
            return search.tune(
                config,
                tasks=names("tasks", tasks),
                protocols=asked,
                grids=grids,
                budget=60 * budget,
                say=say,
            )


def fuse(
    rule: str,
    *,
    base: AnyPath,
    models: Sequence[AnyPath],
    out: AnyPath,
    options: Mapping[str, Any] | None = None,
    statistics: Sequence[AnyPath] = (),
    seed: int = 0,
    vocabulary: str = "base",
    allow_tokenizer: bool = False,
    say: Callable[[str], object] = warnings.warn,
    progress: Callable[[str], object] = lambda line: None,
) -> Path:
    """Fuse finetuned models that lie on a disk; return the folder of the fused one.

    Args:
        rule: one of ``cold-flower rules``, or ``package.module:function``.
        base: what the models were finetuned from: a folder, or a model of the hub.
        models: folders or models of the hub; their bodies are fused.
        out: the folder to write; it must not exist.
        options: of the rule.
        statistics: folders that `statistics` made, of each model's data and in their order, where
            the rule needs them.
        seed: for rules that draw, such as dare.
        vocabulary: ``base``, or ``union``: models added tokens, embeddings are fused by token (the
            mean over the models that have it), and the fused model has all tokens.
        allow_tokenizer: models may have other tokenizers than the base; embeddings are fused row
            by row all the same, or by token with ``union``.
        say: takes a line for each tensor that not every model has, and for what of the base's
            folder is not carried along.
        progress: takes a line every ten seconds, such as ``print``.

    Raises:
        ColdFlowerError: models that do not fit, by key, token or tensor; a rule or option that is
            not there.
    """
    if vocabulary not in offline.VOCABULARIES:
        raise ConfigError(unknown("vocabulary", vocabulary, offline.VOCABULARIES))
    chosen = table("options", options)
    paths = [str(model) for model in several("models", models, "folders")]
    folders = [str(one) for one in several("statistics", statistics, "folders")]
    folder = absolute(out)
    with one_kind_of_error():
        combine = load(rule, **chosen)
        flags = ["--vocabulary", vocabulary] if vocabulary != "base" else []
        flags += ["--allow-tokenizer"] if allow_tokenizer else []
        for one in folders:
            flags += ["--statistics", one]
        card = offline.card(rule, chosen, str(base), paths, seed, flags)
        theta, given = Folder(str(base)), [Folder(path) for path in paths]
        with stoppable():
            left = offline.fuse(
                combine,
                theta,
                given,
                folder,
                card,
                seed,
                statistics=[Path(one) for one in folders],
                vocabulary=vocabulary,
                allow_tokenizer=allow_tokenizer,
                say=say,
                progress=progress,
            )
        for key in left:
            say(f"{key}: not in every model, left as the base's")
    return folder


def statistics(
    model: AnyPath,
    *,
    suite: AnyPath,
    task: str,
    kind: str,
    out: AnyPath,
    examples: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Compute what a fusion rule needs of a finetuned model's data; return the folder.

    Args:
        model: a classifier, saved with its head: a folder, or a model of the hub.
        suite: a built-in one, or a suite file.
        task: of the suite, that the model was finetuned on.
        kind: ``fisher``, ``gram`` or ``gram-full``.
        out: the folder to write; it must not exist.
        examples: of train at most; 0 is the kind's own number.
        settings: keys and values, such as ``{"finetune.max-length": 128}``.

    Raises:
        ColdFlowerError: no such task or kind, a model without a head or of other classes.
    """
    folder = absolute(out)
    if folder.exists():
        raise ModelError(f"{folder} exists: name a new folder")
    keys = {"suite": suite_of(str(suite)), "base-model": str(model), "tasks": task}
    with one_kind_of_error():
        config = experiments.merge({"unseen": "", **keys, **table("settings", settings)})
        with stoppable():
            found, body = data_statistics.make(config, kind, examples)
        facts = {"kind": kind, "model": str(model), "body": body, "task": task, "suite": str(suite)}
        folder.mkdir(parents=True)
        file = folder / data_statistics.FILE
        write_safetensors(file, Weights(found).template(), found.items(), facts)
    return folder


def _name_of(model: AnyPath) -> str:
    return str(Path(model)).strip("/").replace("/", "-")
