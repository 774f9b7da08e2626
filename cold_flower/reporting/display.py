"""Show a run while it goes on: in a terminal, in a notebook, or as plain lines."""

import io
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cold_flower.reporting.progress import AGAIN, Event, Progress, clock

LINES = 3  # of the newest, above the state, in a notebook
WIDTH = 110  # characters of a notebook's cell


@contextmanager
def display(
    console: Console, progress: Progress, now: Callable[[], float] = time.time
) -> Iterator[Callable[[Event], None]]:
    """Yield a function that takes each event of a run and shows it.

    A terminal gets lines that scroll, and the run's state below them; a notebook's cell a few
    lines and the state, in their place. Elsewhere there are only lines, and each published base
    says how much time is left.
    """
    if console.is_jupyter:
        yield _in_a_cell(progress, now)
        return

    def show(event: Event) -> None:
        progress.take(event)
        if AGAIN in event and console.is_terminal:
            return  # the line below says it
        line = str(event["line"])
        if not line:  # only the report shows it
            return
        if "published" in event and not console.is_terminal:
            left = progress.left(now())
            line += f" (about {clock(left)} left)" if left else ""
        console.print(line, highlight=False, markup=False)

    if not console.is_terminal:
        yield show
        return

    class Now:
        def __rich__(self) -> RenderableType:
            return panel(progress, now())

    with Live(Now(), console=console, refresh_per_second=4, transient=True):
        yield show


def panel(progress: Progress, now: float) -> RenderableType:
    """Draw a run's state: two lines."""
    left = progress.left(now)
    row = Table.grid(padding=(0, 1))
    of = f" of {progress.iterations}" if progress.iterations else ""
    where = f"iteration {progress.iteration}{of}" if progress.iteration else "start"
    bar: RenderableType = ProgressBar(total=max(1, progress.of), completed=progress.done, width=30)
    if progress.waits:
        bar = f"waiting for {progress.waits}, {now - progress.waits_since:.0f} s"
    row.add_row(
        Text(where, style="bold"),
        Text(f"{progress.phase:8}", style="cyan"),
        bar,
        f"{progress.done}/{progress.of}" if progress.of else "",
        Text(clock(now - progress.started), style="dim"),
        f"about {clock(left)} left" if left is not None else "",
    )
    return Group(row, Text(progress.scores, style="green")) if progress.scores else row


def _in_a_cell(progress: Progress, now: Callable[[], float]) -> Callable[[Event], None]:
    """Show the newest lines and the state in one output of a notebook's cell."""
    from IPython.display import HTML
    from IPython.display import display as output

    cell = output(HTML(""), display_id=True)
    newest: deque[str] = deque(maxlen=LINES)

    def show(event: Event) -> None:
        progress.take(event)
        newest.extend(str(event["line"]).splitlines())
        page = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False)
        for line in newest:
            page.print(line, highlight=False, markup=False)
        page.print(panel(progress, now()))
        cell.update(HTML(page.export_html(inline_styles=True, code_format="<pre>{code}</pre>")))

    return show
