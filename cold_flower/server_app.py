"""The ServerApp: from Flower's context to a run (`cold_flower.server.coordinator`)."""

import errno
import os
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from cold_flower.config import Config
from cold_flower.data.facts import facts
from cold_flower.data.plan import resolve
from cold_flower.errors import ColdFlowerError
from cold_flower.identity import home
from cold_flower.reporting import trained
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import CONTRIBUTIONS, FULL, RESULT, RUNNER, SCORES, Journal
from cold_flower.runtime.processes import alive
from cold_flower.server.coordinator import Coordinator
from strategies.errors import StrategyError

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one experiment; ``<run-dir>/result.json`` is written last and tells how it went."""
    if runner := int(os.environ.get(RUNNER, "0")):
        threading.Thread(target=_end_with, args=(runner,), daemon=True).start()
    # Flower hands defaults and what the user gave over as one; a recipe has to tell them apart.
    explicit = context.run_config.get("explicit") or ",".join(sorted(grid.run.override_config))
    config = resolve(Config.from_flat({**context.run_config, "explicit": explicit}))
    default = home() / "runs" / f"{config.experiment}-{context.run_id}"
    run_dir = Path(config.run_dir) if config.run_dir else default
    journal = Journal(run_dir)
    journal.open(config, facts(config))
    journal.say(f"the server has started, process {os.getpid()}", server=os.getpid())
    try:
        Coordinator(config, run_dir, grid).run()
    except Exception as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        expected = isinstance(error, ColdFlowerError | StrategyError)
        cause = str(error) if expected else traceback.format_exc(limit=-3).strip()
        head = Repository(run_dir).latest()
        result = {"status": "failed", "iterations": head or 0, "cause": FULL if full else cause}
        with suppress(OSError):  # a full disk takes not even this
            journal.write(RESULT, result)
        raise
    else:
        recipe = trained.Recipe.of(config.flat(), Repository(run_dir).manifest(0))
        told = trained.counts(journal.rows(CONTRIBUTIONS), journal.rows(SCORES), recipe)
        done = {
            "status": "completed", "iterations": config.iterations, "cause": "", "trained": told,
        }  # fmt: skip
        journal.write(RESULT, done)
    finally:
        journal.unlock()


def _end_with(runner: int) -> None:
    """End this process when its runner was killed: Flower would go on without a SuperLink."""
    while alive(runner):
        time.sleep(0.2)
    os._exit(1)  # Ray ends its processes when this one is gone
