"""What leaves a site: checked, written down, then sent; or not sent (``dry-run``).

Every answer and every error of a site passes `Egress` before Flower gets it. ``sent.jsonl`` in
the site's own folder has a line for each: all values that left, and of a body its bytes and the
sha256 that the coordinator's manifest has, too. Flower sends what it was handed, or loses it: that
is not known here. Errors go out without their details: those may quote the site's data.
"""

import json
import math
import re
import sys
import traceback
from collections.abc import Collection, Container, Mapping
from pathlib import Path
from typing import Any

import torch

from cold_flower.config import PROTOCOLS
from cold_flower.contributors.folder import append, private
from cold_flower.data.task import METRIC_OF
from cold_flower.errors import ColdFlowerError, ConfigError, LimitError, ModelError, SiteError
from cold_flower.identity import ROOT, code_sha256, home, timestamp
from strategies import records
from strategies.errors import Refused
from strategies.form import check_form
from strategies.fusion import Fingerprint, Template, fingerprint
from strategies.fusion._statistics import prefix

SENT, ERRORS = "sent.jsonl", "errors.log"
# They speak of the run's keys, the model and the GPU, not of data.
_HARMLESS = (ConfigError, ModelError, LimitError, torch.OutOfMemoryError)
_METRICS = {  # all that each answer may hold
    "query": frozenset[str](),
    "train": frozenset(records.LISTED),
    "evaluate": frozenset({records.EXAMPLES, *PROTOCOLS}),
}
_WORKER = ("device", "visible-gpus", "worker")
_STATED = {  # the other record of each answer, and all that it may hold
    "query": (
        records.CONTRIBUTOR,
        (
            "name", "task", "metric", "examples", "tokens", "unknown", "cut", "protocol",
            "versions", "code", "model", *_WORKER,
        ),
    ),
    "train": (records.CONTRIBUTION, ("contributor", "iteration", "base", *records.FACTS)),
    "evaluate": (
        records.CONTRIBUTOR,
        ("contributor", "task", "metric", "seconds", *records.TRAINED, *_WORKER),
    ),
}  # fmt: skip
_TEXTS = {  # no sentence passes
    "versions": r"([\w-]{1,20}=[\w.+-]{1,20} ?){0,6}",
    "stopped": "early|epochs|time",
    "device": "[a-z]{1,20}",
    "visible-gpus": r"[\w,-]{0,200}",
    "code": "[0-9a-f]{64}",
    "model": "[0-9a-f]{64}",
}


class NotSent(SiteError):
    """An answer was written down and stays at the site."""


class Egress:
    """The way out of a site.

    Args:
        name: of the site; empty where its site.toml cannot be used, and only an error leaves.
        dry_run: whether answers stay here.
        statistics: which of its data may leave beside a body.
    """

    def __init__(
        self, name: str = "", *, dry_run: bool = False, statistics: Collection[str] = ()
    ) -> None:
        self._name, self._dry_run, self._statistics = name, dry_run, statistics
        self._folder = home() / name

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
        statistic = str(asked.get(records.STATISTIC, "")) if kind == "train" else ""
        before, bodies = prefix(statistic), map(records.unpack, content.array_records.values())
        sha256 = "".join(Fingerprint.of(body).hexdigest(without=before) for body in bodies)
        size, kept = records.size_of(content), self._dry_run and kind != "query"
        self._append(
            {
                "kind": kind,
                **{key: asked[key] for key in ("run", "iteration") if key in asked},
                "sent": not kept,
                "bytes": size,
                "sha256": sha256,
                **({"statistic": statistic} if statistic else {}),
                **records.values_of(content),
            }
        )
        if kept:
            raise NotSent(f"dry-run: the answer to {kind} ({size} bytes) stays at the site")

    def check(self, kind: str, content: Any, received: Any) -> None:
        """Check that an answer holds nothing but what may leave; arguments as of `release`.

        A body leaves in the answer to train alone, and with the names and shapes of the base;
        beside it a statistic that was asked for, if the site lets it leave.

        Raises:
            SiteError: naming what may not.
        """
        given = content.array_records
        if set(given) != ({records.ARRAYS} if kind == "train" else set()):
            raise SiteError(f"an answer to {kind} held {sorted(given)}: not sent")
        stated, keys = _STATED[kind]
        allowed = {records.METRICS: _METRICS[kind], stated: keys}
        base = ""
        if kind == "train":
            sent, body = received.array_records[records.ARRAYS], given[records.ARRAYS]
            asked = records.config_of(received, records.CONFIG)
            form = self._form(body, sent, str(asked.get(records.STATISTIC, "")))
            if larger := [
                name for name, a in body.items() if len(a.data) > records.most(form[name])
            ]:
                raise SiteError(f"{larger[0]} holds more bytes than its shape needs: not sent")
            base = str(asked.get("base") or fingerprint(records.unpack(sent)))
        for name, values in (*content.metric_records.items(), *content.config_records.items()):
            if name not in allowed:
                raise SiteError(f"a record called {name[:80]!r}: not sent")
            self._check_values(kind, values, allowed[name], base)

    def _form(self, body: Any, base: Any, statistic: str) -> Template:
        """Return names, dtypes and shapes of what leaves: the base's, and a statistic's."""
        if statistic and statistic not in self._statistics:
            raise SiteError(f"a statistic, {statistic}, which site.toml does not name: not sent")
        given = {name: (a.dtype, tuple(a.shape)) for name, a in body.items()}
        try:
            form = check_form(given, records.template_of(base), statistic)
        except Refused as reason:
            raise SiteError(
                f"the trained body is not of the base's names and shapes ({reason}): not sent"
            ) from reason
        return form

    def _check_values(
        self, kind: str, values: Mapping[str, Any], allowed: Container[str], base: str
    ) -> None:
        """Check that a record has listed keys alone, and of each a value of its kind.

        Raises:
            SiteError: naming the key.
        """
        own = (self._name,)
        one_of = {"name": own, "contributor": own, "task": own, "metric": (*METRIC_OF.values(),)}
        one_of["base"] = (base,)
        for key, value in values.items():
            if key not in allowed:
                raise SiteError(f"{key[:80]!r} is not one that leaves in an answer to {kind}")
            if key in _TEXTS:
                good = bool(re.fullmatch(_TEXTS[key], str(value), re.ASCII))
                expected = _TEXTS[key]
            elif key in one_of:
                good, expected = value in one_of[key], f"one of {', '.join(one_of[key])}"
            else:
                good = type(value) in (int, float) and math.isfinite(value)
                expected = "a finite number"
            if not good:
                raise SiteError(f"{key} is {str(value)[:200]!r}, expected {expected}: not sent")

    def tell(self, cause: str, line: str) -> None:
        """Write an error into the site's own log, and down what leaves of it.

        Args:
            cause: what happened; it stays here.
            line: what may leave (`redacted`).
        """
        # First where nothing can fail: the file's folder may be full, or not ours to write into.
        print(f"cold-flower, site {self._name or '?'}: {cause}", file=sys.stderr, flush=True)
        self._write(ERRORS, f"{timestamp()} {cause}")
        self._append({"kind": "error", "sent": True, "bytes": 0, "error": line})

    def _append(self, row: Mapping[str, Any]) -> None:
        line = {"time": timestamp(), **row, "app": ROOT.name, "code": code_sha256()}
        self._write(SENT, json.dumps(line, default=str))

    def _write(self, name: str, line: str) -> None:
        if self._name:
            private(self._folder)
        else:  # all contributors' folder
            self._folder.mkdir(parents=True, exist_ok=True)
        append(self._folder / name, line)


def redacted(error: Exception, line: str) -> tuple[str, str]:
    """Return what a site's own log says of an error, and what may leave of it.

    Args:
        error: what happened.
        line: what would be said of it if it were not a site's.
    """
    cause = f"{line} ({error.__cause__})" if error.__cause__ else line
    if not isinstance(error, ColdFlowerError):
        cause = "".join(traceback.format_exception(error)).strip()
    if not isinstance(error, (*_HARMLESS, NotSent)):
        line = f"{type(error).__name__}: the details are in the site's own log"
    return cause, line


def only_listed(metrics: Mapping[str, float | str]) -> dict[str, float]:
    """Return the metrics that leave a contributor: those listed."""
    listed = {key: metrics[key] for key in records.LISTED if key in metrics}
    return {key: value for key, value in listed.items() if not isinstance(value, str)}
