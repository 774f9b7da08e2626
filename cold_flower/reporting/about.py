"""The first sentences of a report: what was run, and how it differs from what is shipped."""

import html
from collections.abc import Iterable, Sequence

from cold_flower.reporting import catalogue
from cold_flower.reporting.conditions import Condition
from cold_flower.reporting.statistics import pick


def what_was_run(compared: Sequence[Condition]) -> Iterable[str]:
    """Yield what was run; and of a shipped experiment what it says of itself, and what differs."""
    runs = [run for condition in compared for run in condition.runs]
    tasks = [
        " and ".join(
            f"{count} {group}"
            for group in ("seen", "unseen")
            if (count := len({row["task"] for row in pick(run.scores, group=group)}))
        )
        for run in runs
    ]
    facts = (
        ("tasks scored", tasks),
        ("iterations", [condition.last for condition in compared]),
        ("suite", [run.config["suite"] for run in runs]),
        ("base model", [run.config["base-model"] for run in runs]),
    )
    told = [f"{name}: {' or '.join(map(str, dict.fromkeys(found)))}" for name, found in facts]
    yield f"<p>{html.escape('; '.join(told))}.</p>"
    name = str(compared[0].config["experiment"])
    if description := catalogue.about(name):
        differing = catalogue.changed(name, (run.config for run in runs))
        but = f"; here {', '.join(differing)}" if differing else ""
        yield f"<p>{html.escape(f'The experiment {name} as shipped{but}.')}"
        yield f" Its own words: {html.escape(description)}</p>"
