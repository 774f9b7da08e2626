"""What is recorded of an iteration: the body of its manifest.json, and what is read out of it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from cold_flower.config import Config
from cold_flower.repository.bases import Repository
from cold_flower.repository.manifests import fused
from cold_flower.server.strategy import stages
from strategies import records
from strategies.contributions import Contribution
from strategies.diagnostics import Diagnosis, drift
from strategies.fusion import Weights
from strategies.gate import Judgement

_UNKNOWN: dict[str, Any] = {"diff-norm": None, "cosine": None, "leave-one-out": None, "layers": {}}


def describe(
    config: Config,
    contributions: Iterable[Contribution],
    diagnosis: Diagnosis,
    judgement: Judgement | None,
) -> dict[str, Any]:
    """Describe an iteration: rule, stages, each contributor's part, the gate's decision.

    Args:
        config: the run's.
        contributions: what became of each one's answer.
        diagnosis: what the accepted ones measure, by name.
        judgement: the gate's, if there is a gate.
    """
    contributions = sorted(contributions, key=lambda one: one.name)
    accepted = [one.name for one in contributions if one.verdict == "accepted"]
    measured = {
        name: {
            "diff-norm": diagnosis.norms[i],
            "cosine": diagnosis.cosines[i],
            "leave-one-out": diagnosis.without[i],
            "layers": {layer: norms[i] for layer, norms in diagnosis.layers.items()},
        }
        for i, name in enumerate(accepted)
    }
    return {
        "rule": config.fusion.strategy or config.fusion.rule,
        "options": config.rule_options(),
        "stages": {k.replace("_", "-"): v for k, v in asdict(stages(config)).items()},
        "contributors": [
            {
                **{k: v for k, v in one.metrics.items() if k != records.EXAMPLES},
                "name": one.name,
                "verdict": one.verdict,
                "reason": one.reason,
                "examples": int(one.metrics.get(records.EXAMPLES, 0)),
                "sha256": one.sha256,
                **_UNKNOWN,
                **one.figures,
                **({"staleness": one.staleness} if one.staleness else {}),
                **measured.get(one.name, {}),
                **one.facts,
            }
            for one in contributions
        ],
        "cosines": dict(zip(accepted, diagnosis.pairwise, strict=True)),
        "sign-conflicts": diagnosis.conflicts,
        "mean-norm": diagnosis.mean,
        "gate": asdict(judgement) if judgement else {},
    }


def moved(
    start: Weights, base: Weights, fused: Weights, mean: float, own: float = 0.0
) -> dict[str, Any]:
    """Describe how far an iteration moved the base, and how far it is from the start by now.

    Args:
        start: theta_0.
        base: the one before.
        fused: the new one.
        mean: L2 norm of what the plain mean would have added.
        own: that of the rule alone, where ``fusion.norm`` gave it another length; 0 if not known.
    """
    step = math.hypot(*drift(base, fused).values())
    return {
        "step-norm": step,
        "length": step / mean if mean else None,
        **({"own-length": own / mean} if own and mean else {}),
        "drift": drift(start, fused),
    }


def contribution_rows(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a manifest's contributors as the rows of contributions.jsonl.

    A replay (`cold_flower.server.replay`) brought no new ones.
    """
    rows: list[dict[str, Any]] = []
    if "replay" in manifest:
        return rows
    for row in manifest.get("contributors", []):
        plain = {key.replace("-", "_"): value for key, value in row.items() if key != "name"}
        rows.append({**plain, "iteration": manifest["iteration"], "contributor": row["name"]})
    return rows


def accepted_norms(repository: Repository) -> dict[str, list[float]]:
    """Return the norms of what each contributor gave along the lineage, if it was fused."""
    norms: dict[str, list[float]] = {}
    for manifest in repository.line():
        add_norms(norms, manifest)
    return norms


def add_norms(norms: dict[str, list[float]], manifest: Mapping[str, Any]) -> None:
    """Add what a further iteration of the lineage says to the norms that `accepted_norms` gives."""
    for row in fused(manifest):
        norms.setdefault(row["name"], []).append(row["diff-norm"])
