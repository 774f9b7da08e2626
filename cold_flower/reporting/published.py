"""The paper's Table 1 beside a run, in its report."""

from collections.abc import Iterable, Sequence

from cold_flower.data.suite import load_suite
from cold_flower.errors import TaskError
from cold_flower.reporting import reference
from cold_flower.reporting.conditions import Condition
from cold_flower.reporting.markup import Cell, table
from cold_flower.reporting.statistics import task_gains
from cold_flower.reporting.tables import points


def paper_table(compared: Sequence[Condition]) -> Iterable[str]:
    """Yield the paper's Table 1 beside the run: MUPPET as printed, and put on its rows again."""
    condition = next((c for c in compared if not c.is_level), compared[0])
    gains = task_gains(condition.scores, "finetuned", condition.last)
    own = {task: one for (_, task), one in sorted(gains.items(), reverse=True)}  # seen, if both
    comparable = _comparable(str(condition.config["suite"]))
    paper = load_suite("paper").tasks
    task_of = {task.paper_name: name for name, task in paper.items()}
    repaired = {
        str(row["dataset"]): row["muppet_repaired"]
        for row in reference.read("table1_muppet_repaired")
    }
    rows: list[list[Cell]] = []
    for row in reference.read("table1"):
        dataset, start = str(row["dataset"]), float(row["finetune"])
        task = task_of.get(dataset, "")
        if task not in own:
            continue
        muppet = repaired[dataset]
        rows.append(
            [
                dataset,
                comparable.get(task, paper[task].comparable),
                points(*own[task], sign="+"),
                *(f"{float(row[c]) - start:+.2f}" for c in ("cold_fusion", "multitask", "muppet")),
                f"{float(muppet) - start:+.2f}" if muppet else "",
            ]
        )
    if not rows:
        return
    yield "<h2>Beside the paper's Table 1</h2>"
    head = ["gain over finetuning the start", "comparable", "this run", "ColD", "multitask"]
    yield table([*head, "MUPPET printed", "MUPPET put back"], rows)
    printed, text = reference.said()["table"], reference.said()["text"]
    yield (
        "<p class=note>The paper finetunes RoBERTa-base for 30 iterations on all of the data. Its "
        f"text says {text['gain']:+.2f} on average and {text['worst']:+.2f} at worst, its table "
        f"{printed['gain']:+.2f} and {printed['worst']:+.2f}. The printed MUPPET column stands on "
        "the wrong rows: score times test size is no whole number for 20 of 35 cells, and each of "
        "the 20 fits another dataset, where it has been put back here. Comparable: whether the "
        "data are the paper's, as far as that is known (docs/datasets.md).</p>"
    )


def _comparable(suite: str) -> dict[str, str]:
    """Return what the run's own suite says of its tasks, where it is still there."""
    try:
        tasks = load_suite(suite).tasks
    except TaskError:
        return {}
    return {name: task.comparable or "unsaid" for name, task in tasks.items()}
