"""What leaves a site: checked, written down, then sent; or not sent (``dry-run``).

`Outgoing` stands between a contributor's answer and Flower. ``sent.jsonl`` in the site's own
folder holds a line for each message that left: every value in it, and of a body its bytes and
the sha256 that the coordinator's manifest has, too. Errors go out without their details:
those may quote the site's data.
"""

import json
import math
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cold_flower.config import PROTOCOLS
from cold_flower.contributors.site import Site
from cold_flower.errors import ColdFlowerError, ConfigError, ModelError, SiteError
from cold_flower.identity import ROOT, code_sha256, home, timestamp
from strategies import records

SENT, ERRORS = "sent.jsonl", "errors.log"
_HARMLESS = (ConfigError, ModelError)  # speak of the run's keys and the model, not of data
_METRICS = {  # all that each answer may hold; a body leaves in the answer to train alone
    "query": frozenset[str](),
    "train": frozenset(records.LISTED),
    "evaluate": frozenset({records.EXAMPLES, *PROTOCOLS}),
}


class Outgoing:
    """A site's gate for answers.

    Args:
        site: whose.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._folder = home() / site.name

    @property
    def log(self) -> Path:
        """Return the file that holds what was sent."""
        return self._folder / SENT

    def check(self, kind: str, content: Any, received: Any) -> None:
        """Let through what may leave.

        Args:
            kind: ``query``, ``train`` or ``evaluate``.
            content: the answer's records.
            received: the message's: a body has its names and shapes, or does not leave.

        Raises:
            SiteError: naming what may not.
        """
        given = content.array_records
        if set(given) != ({records.ARRAYS} if kind == "train" else set()):
            raise SiteError(f"an answer to {kind} held {sorted(given)}: not sent")
        for key, record in content.metric_records.items():
            if extra := set(record) - _METRICS[kind]:
                raise SiteError(f"{key} {min(extra)!r} is not one that leaves: not sent")
        if kind == "train":
            base = records.template_of(received.array_records[records.ARRAYS])
            if records.template_of(given[records.ARRAYS]) != base:
                raise SiteError("the trained body is not of the base's names and shapes: not sent")

    def record(self, kind: str, content: Any, about: Mapping[str, Any], body: str = "") -> None:
        """Write down an answer before it leaves.

        Args:
            kind: of message.
            content: the answer's records.
            about: of the message: run, iteration.
            body: sha256 of the body in it.

        Raises:
            SiteError: dry-run: it was written down and must stay here.
        """
        values = records.values_of(content)
        size = records.size_of(content)
        kept = self._site.dry_run and kind != "query"
        self._append(
            {"kind": kind, **about, "sent": not kept, "bytes": size, "sha256": body, **values}
        )
        if kept:
            raise SiteError(f"dry-run: the answer to {kind} ({size} bytes) stays at the site")

    def error(self, error: BaseException) -> str:
        """Write an error into the site's own log; return what may leave of it."""
        full = f"{type(error).__name__}: {error}"
        if not isinstance(error, ColdFlowerError):
            full = "".join(traceback.format_exception(error)).strip()
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ERRORS).open("a") as file:
            file.write(f"{timestamp()} {full}\n")
        print(f"cold-flower, site {self._site.name}: {full}", file=sys.stderr, flush=True)
        open_to_all = isinstance(error, _HARMLESS) or (
            isinstance(error, SiteError) and str(error).startswith("dry-run")
        )
        told = str(error) if open_to_all else "the details are in the site's own log"
        said = f"{type(error).__name__}: {told}"
        self._append({"kind": "error", "sent": True, "bytes": 0, "error": said})
        return said

    def _append(self, row: Mapping[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        line = {"time": timestamp(), **row, "app": ROOT.name, "code": code_sha256()}
        with self.log.open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")


def only_listed(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that leave a contributor: those listed, where they are finite."""
    return {k: v for k, v in metrics.items() if k in records.LISTED and math.isfinite(v)}
