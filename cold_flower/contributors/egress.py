"""What leaves a site: checked, written down, then sent; or not sent (``dry-run``).

Every answer and every error of a site passes `Egress` before Flower gets it. ``sent.jsonl`` in
the site's own folder has a line for each: all values that left, and of a body its bytes and the
sha256 that the coordinator's manifest has, too. Errors go out without their details: those may
quote the site's data.
"""

import json
import math
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cold_flower.config import PROTOCOLS
from cold_flower.contributors.site import Site
from cold_flower.errors import ColdFlowerError, ConfigError, ModelError, SiteError
from cold_flower.identity import ROOT, code_sha256, home, timestamp
from strategies import records
from strategies.fusion import fingerprint

SENT, ERRORS = "sent.jsonl", "errors.log"
# They speak of the run's keys, the model and the GPU, not of data.
_HARMLESS = (ConfigError, ModelError, torch.OutOfMemoryError)
_METRICS = {  # all that each answer may hold
    "query": frozenset[str](),
    "train": frozenset(records.LISTED),
    "evaluate": frozenset({records.EXAMPLES, *PROTOCOLS}),
}


class NotSent(SiteError):
    """An answer was written down and stays at the site."""


class Egress:
    """The way out of a site.

    Args:
        site: whose.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._folder = home() / site.name

    @property
    def log(self) -> Path:
        """Return the file that lists what was sent."""
        return self._folder / SENT

    def release(self, kind: str, content: Any, received: Any) -> None:
        """Check an answer and write it down; it may be sent when this returns.

        Args:
            kind: ``query``, ``train`` or ``evaluate``.
            content: the answer's records.
            received: those of the message that it answers.

        Raises:
            SiteError: naming what may not leave; with ``dry-run``, that the answer stays.
        """
        self.check(kind, content, received)
        asked = records.config_of(received, records.CONFIG)
        bodies = content.array_records.values()
        size, kept = records.size_of(content), self._site.dry_run and kind != "query"
        self._append(
            {
                "kind": kind,
                **{key: asked[key] for key in ("run", "iteration") if key in asked},
                "sent": not kept,
                "bytes": size,
                "sha256": "".join(fingerprint(records.unpack(body)) for body in bodies),
                **records.values_of(content),
            }
        )
        if kept:
            raise NotSent(f"dry-run: the answer to {kind} ({size} bytes) stays at the site")

    def check(self, kind: str, content: Any, received: Any) -> None:
        """Check that an answer holds nothing but what may leave; arguments as of `release`.

        A body leaves in the answer to train alone, and with the names and shapes of the base.

        Raises:
            SiteError: naming what may not.
        """
        given = content.array_records
        if set(given) != ({records.ARRAYS} if kind == "train" else set()):
            raise SiteError(f"an answer to {kind} held {sorted(given)}: not sent")
        for name, record in content.metric_records.items():
            if extra := set(record) - _METRICS[kind]:
                raise SiteError(f"{name} {min(extra)!r} is not one that leaves: not sent")
        if kind == "train":
            base = records.template_of(received.array_records[records.ARRAYS])
            if records.template_of(given[records.ARRAYS]) != base:
                raise SiteError("the trained body is not of the base's names and shapes: not sent")

    def redact(self, error: Exception, line: str) -> str:
        """Write an error into the site's own log; return what may leave of it.

        Args:
            error: what happened.
            line: what would be said of it if it were not a site's.
        """
        whole = line
        if not isinstance(error, ColdFlowerError):
            whole = "".join(traceback.format_exception(error)).strip()
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ERRORS).open("a") as file:
            file.write(f"{timestamp()} {whole}\n")
        print(f"cold-flower, site {self._site.name}: {whole}", file=sys.stderr, flush=True)
        if not isinstance(error, (*_HARMLESS, NotSent)):
            line = f"{type(error).__name__}: the details are in the site's own log"
        self._append({"kind": "error", "sent": True, "bytes": 0, "error": line})
        return line

    def _append(self, row: Mapping[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        line = {"time": timestamp(), **row, "app": ROOT.name, "code": code_sha256()}
        with self.log.open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")


def only_listed(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that leave a contributor: those listed, where they are finite."""
    return {k: v for k, v in metrics.items() if k in records.LISTED and math.isfinite(v)}
