"""Whether a model was fused before: what its folder says of how it was made."""

import json
from pathlib import Path

CARD, TAG = "README.md", "cold-fusion"  # the model card of `cold-flower fuse`, and its tag there
MANIFEST = "manifest.json"  # of a base, beside its weights


def licence_of(folder: Path) -> str:
    """Return the licence that the model card in a folder names; "" without any."""
    from huggingface_hub import ModelCard

    try:
        named = ModelCard.load(folder / CARD).data.license
    except Exception:  # no card, or any fault that somebody's YAML may have
        return ""
    return str(named or "")


def was_fused(model: str) -> bool:
    """Return whether a folder holds a base of a run, or what `cold-flower fuse` wrote.

    A starting model counts if it was fused itself. Of a model of the hub nothing is known.
    """
    folder = Path(model)
    try:
        made = json.loads((folder / MANIFEST).read_text())
        if made.get("iteration") or made.get("fused"):
            return True
    except (OSError, ValueError, AttributeError):  # another tool's manifest.json
        pass
    try:
        _, top, *_ = (folder / CARD).read_text().split("---\n", 2)
    except (OSError, ValueError):
        return False
    return TAG in top
