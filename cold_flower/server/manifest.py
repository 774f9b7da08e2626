"""What is recorded of an iteration: the body of its manifest.json."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from cold_flower.config import Config
from cold_flower.server.strategy import stages
from strategies import records
from strategies.arrivals import Arrival
from strategies.diagnostics import Diagnosis
from strategies.gate import Judgement

_UNKNOWN: dict[str, Any] = {"diff-norm": None, "cosine": None, "leave-one-out": None, "layers": {}}


def manifest(
    config: Config,
    arrivals: Iterable[Arrival],
    found: Diagnosis,
    judged: Judgement | None,
) -> dict[str, Any]:
    """Describe an iteration: rule, stages, each contributor's part, the gate's decision.

    Args:
        config: the run's.
        arrivals: what became of each one's answer.
        found: what the accepted ones measure, by name.
        judged: the gate's judgement, if there is a gate.
    """
    arrivals = sorted(arrivals, key=lambda arrival: arrival.name)
    accepted = [arrival for arrival in arrivals if arrival.verdict == "accepted"]
    measured = {
        arrival.name: {
            "diff-norm": found.norms[i],
            "cosine": found.cosines[i],
            "leave-one-out": found.without[i],
            "layers": {layer: norms[i] for layer, norms in found.layers.items()},
        }
        for i, arrival in enumerate(accepted)
    }
    return {
        "rule": config.fusion.strategy or config.fusion.rule,
        "options": config.rule_options(),
        "stages": {k.replace("_", "-"): v for k, v in asdict(stages(config)).items()},
        "contributors": [
            {
                **{k: v for k, v in arrival.metrics.items() if k != records.EXAMPLES},
                "name": arrival.name,
                "verdict": arrival.verdict,
                "reason": arrival.reason,
                "examples": int(arrival.metrics.get(records.EXAMPLES, 0)),
                "sha256": arrival.sha256,
                **_UNKNOWN,
                **arrival.figures,
                **measured.get(arrival.name, {}),
                **arrival.where,
            }
            for arrival in arrivals
        ],
        "cosines": {arrival.name: found.pairwise[i] for i, arrival in enumerate(accepted)},
        "sign-conflicts": found.conflicts,
        "gate": asdict(judged) if judged else {},
    }
