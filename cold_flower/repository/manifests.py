"""manifest.json of a base: what it is made of, and from which it was made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cold_flower.identity import timestamp
from cold_flower.repository.provenance import MANIFEST


def write(folder: Path, manifest: Mapping[str, Any], sha256: str) -> None:
    """Write a manifest beside a body, with the time and the body's sha256."""
    full = {**manifest, "time": timestamp(), "sha256": sha256}
    (folder / MANIFEST).write_text(json.dumps(full, indent=2) + "\n")


def read(path: Path, iteration: int) -> dict[str, Any]:
    """Read the manifest of an iteration.

    Raises:
        OSError: it cannot be read; FileNotFoundError where it is not there.
        ValueError, RecursionError: it is not as it was written.
    """
    manifest: dict[str, Any] = json.loads(path.read_text())
    if not _is_whole(manifest, iteration):
        raise ValueError("not as it was written")
    return manifest


def _is_whole(found: Any, iteration: int) -> bool:
    """Return whether what was found has all that following the lineage needs."""
    if not isinstance(found, dict) or found.get("iteration") != iteration:
        return False
    contributors, parent = found.get("contributors", []), found.get("parent")
    if not isinstance(contributors, list) or not all(
        isinstance(row, dict) and {"name", "verdict"} <= row.keys() for row in contributors
    ):
        return False
    if iteration == 0:
        names = found.get("body")
        return (
            parent is None
            and isinstance(found.get("prefix"), str)
            and isinstance(names, list)
            and all(isinstance(name, str) for name in names)
        )
    return isinstance(parent, int) and 0 <= parent < iteration  # so that the lineage ends


def rejected(manifest: Mapping[str, Any]) -> bool:
    """Return whether the gate rejected an iteration: its base is its parent's."""
    return manifest.get("gate", {}).get("accepted") is False


def fused(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the contributors whose work is in an iteration's base: of a rejected one nobody."""
    rows = [] if rejected(manifest) else manifest.get("contributors", [])
    return [row for row in rows if row["verdict"] == "accepted"]
