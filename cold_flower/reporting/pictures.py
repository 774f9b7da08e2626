"""Pictures of one run, drawn from what it wrote down: part of its report.

The lineage; who contributed when; how the contributions of an iteration lie to each other; what
the workers did; how far the base drifted; each task's scores. Pointing at a part shows its figures.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cold_flower.config import ALL_PROTOCOLS
from cold_flower.reporting.progress import Progress, Span
from cold_flower.reporting.runs import RunDirectory
from cold_flower.reporting.statistics import Row, pick
from cold_flower.reporting.svg import circle, drawing, path, rect, text
from cold_flower.reporting.tables import summary
from cold_flower.repository.bases import Repository
from cold_flower.repository.manifests import rejected

Manifest = Mapping[str, Any]
STEP, LANE, CELL, NAMES = 46, 34, 22, 150
MOST = 40  # contributions of an iteration that the map of cosines has room for


def lineage(manifests: Sequence[Manifest], line: Sequence[int], told: Mapping[int, str]) -> str:
    """Draw all iterations: the lineage of the head, rejected ones, and what rollbacks left.

    Args:
        manifests: of every iteration, by number.
        line: the iterations of the lineage, from the start to the head.
        told: the scores of those that were evaluated, in words.
    """
    by_number = {one["iteration"]: one for one in manifests}
    place = {
        number: (24.0 + STEP * i, 24.0 + (0 if number in line else LANE))
        for i, number in enumerate(sorted(by_number))
    }
    parts = []
    for number, one in by_number.items():
        (x, y), parent = place[number], one["parent"]
        if parent in place:
            (from_x, from_y) = place[parent]
            bend = [(from_x, from_y), (x, y)]
            if y == from_y and x - from_x > STEP:  # over what lies between
                bend = [(from_x, from_y), (from_x + 12, y - 14), (x - 12, y - 14), (x, y)]
            parts.append(path(bend, "soft"))
    for number, one in by_number.items():
        (x, y), kind = place[number], "good" if number in line else "gone"
        if rejected(one):
            kind = "bad"
        ring = "now" if number == line[-1] else ""
        parts.append(circle(x, y, 9, f"{kind} {ring}", title=_base(one, told.get(number, ""))))
        parts.append(text(x, y + 22, str(number), "small", anchor="middle"))
    width, height = 48 + STEP * (len(place) - 1), 30 + max(y for _, y in place.values())
    return drawing(max(width, 120), height, parts, "the lineage of the bases")


def _base(one: Manifest, scores: str) -> str:
    lines = [
        f"base {one['iteration']}" + ("" if one["parent"] is None else f", from {one['parent']}")
    ]
    given = [row["verdict"] for row in one.get("contributors", [])]
    counted = [f"{given.count(verdict)} {verdict}" for verdict in dict.fromkeys(given)]
    if one.get("rule"):
        lines.append(", ".join([str(one["rule"]), *counted]))
    if rejected(one):
        lines.append(f"rejected by the gate: {one['gate'].get('reason', '')}")
    if one.get("length"):
        lines.append(f"length {one['length']:.2f}")
    return "\n".join([*lines, scores] if scores else lines)


def contributed(manifests: Sequence[Manifest]) -> str:
    """Draw who contributed when: a row a contributor, a column an iteration.

    A cell's depth is what its finetuning gained on dev, from nothing to 50 points.
    """
    iterations = [one for one in manifests if one.get("contributors")]
    names = sorted({row["name"] for one in iterations for row in one["contributors"]})
    if not names:
        return ""
    column = {one["iteration"]: NAMES + CELL * i for i, one in enumerate(iterations)}
    line = {name: 24.0 + CELL * i for i, name in enumerate(names)}
    parts = [text(NAMES - 8, line[name] + 15, name, "small", anchor="end") for name in names]
    for one in iterations:
        number = one["iteration"]
        parts.append(text(column[number] + 10, 16, str(number), "small", anchor="middle"))
        for row in one["contributors"]:
            x, y = column[number], line[row["name"]]
            kind = {"accepted": "good", "refused": "bad"}.get(row["verdict"], "gone")
            gained = row.get("dev-accuracy", 0) - row.get("dev-start", 0)
            depth = 1.0
            if kind == "good" and "dev-accuracy" in row:
                depth = min(1.0, max(0.15, 0.15 + 0.85 * gained / 0.5))
            title = _contribution(number, row)
            parts.append(rect(x, y, 20, 20, kind, title=title, fill_opacity=f"{depth:.2f}"))
    height = 30 + CELL * len(names)
    return drawing(NAMES + CELL * len(iterations) + 8, height, parts, "who contributed when")


def _contribution(iteration: int, row: Mapping[str, Any]) -> str:
    lines = [f"{row['name']}, iteration {iteration}: {row['verdict']}"]
    if row.get("reason"):
        lines.append(row["reason"])
    if "dev-accuracy" in row:
        lines.append(f"dev {100 * row.get('dev-start', 0):.1f} to {100 * row['dev-accuracy']:.1f}")
    if row.get("staleness"):
        lines.append(f"from a base {row['staleness']} older")
    if row.get("from"):
        lines.append(f"from the {row['from']}: {row.get('recognised', '')}")
    for key, words in (("diff-norm", "norm"), ("cosine", "cosine with the mean")):
        if row.get(key) is not None:
            lines.append(f"{words} {row[key]:.3g}")
    return "\n".join(lines)


def cosines(manifest: Manifest) -> str:
    """Draw the cosines of an iteration's contributions with each other."""
    found = manifest.get("cosines") or {}
    names = list(found)[:MOST]
    if len(names) < 2:
        return ""
    across = [x for i, name in enumerate(names) for j, x in enumerate(found[name]) if i != j]
    top = max(0.1, *(abs(x) for x in across))
    parts = []
    for i, name in enumerate(names):
        y = 8.0 + CELL * i
        parts.append(text(NAMES - 8, y + 15, name, "small", anchor="end"))
        for j, (other, value) in enumerate(zip(found, found[name], strict=False)):
            if j >= MOST or i == j:
                continue
            kind, depth = "good" if value >= 0 else "bad", min(1.0, abs(value) / top)
            title = f"{name} and {other}: {value:.3f}"
            shade = f"{0.08 + 0.92 * depth:.2f}"
            x = NAMES + CELL * j
            parts.append(rect(x, y, 20, 20, kind, title=title, fill_opacity=shade))
    side = CELL * len(names)
    scale = f"deepest: {top:.2f}; green alike, orange against each other"
    parts.append(text(NAMES, side + 26, scale, "small"))
    size = NAMES + max(side, 300) + 8
    return drawing(size, side + 36, parts, "cosines of the contributions")


def timeline(progress: Progress, width: float = 900) -> str:
    """Draw what each worker did since the run was started or resumed; gaps are idle time."""
    spans = [span for span in progress.spans if span.worker]
    if not spans:
        return ""
    workers = list(dict.fromkeys(span.worker for span in sorted(spans, key=lambda s: s.start)))
    first, last = min(s.start for s in spans), max(s.end for s in spans)
    scale = (width - 110) / max(1e-9, last - first)
    parts = []
    for i, worker in enumerate(workers):
        own = [span for span in spans if span.worker == worker]
        y, busy = 8.0 + LANE * i, sum(span.end - span.start for span in own)
        idle = max(0.0, 1 - busy / max(1e-9, last - first))
        parts.append(text(4, y + 15, f"{idle:.0%} idle", "small"))
        parts.append(rect(100, y, width - 110, 22, "lane"))
        parts.extend(_bar(span, 100 + scale * (span.start - first), y, scale) for span in own)
    below = 8 + LANE * len(workers)
    for quarter in range(5):
        share, anchor = quarter / 4, {0: "start", 4: "end"}.get(quarter, "middle")
        at = 100 + share * (width - 110)
        parts.append(text(at, below + 12, _time(share * (last - first)), "small", anchor=anchor))
    return drawing(width, below + 20, parts, "what the workers did")


def _bar(span: Span, x: float, y: float, scale: float) -> str:
    seconds = span.end - span.start
    title = f"{span.who}: {span.phase} {span.iteration}, {seconds:.1f} s"
    return rect(x, y, max(1.0, scale * seconds - 0.5), 22, span.phase, title=title)


def _time(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 180 else f"{whole / 60:.0f} min"


def drift(manifests: Sequence[Manifest], width: float = 420) -> str:
    """Draw how far each layer of the base is from the start, in its norm, by iteration."""
    bases = [one for one in manifests if one.get("drift")]
    if not bases:
        return ""
    layers = list(bases[0]["drift"])
    top = max(max(one["drift"].values()) for one in bases) or 1.0
    last = max(one["iteration"] for one in bases)
    height, parts, ends = 220.0, [], []
    for i, layer in enumerate(layers):
        points = [(0.0, 0.0), *((float(b["iteration"]), b["drift"].get(layer, 0.0)) for b in bases)]
        drawn = [(40 + x / last * width, 200 - y / top * 180) for x, y in points]
        depth = f"{0.35 + 0.65 * i / max(1, len(layers) - 1):.2f}"
        title = f"{layer}: " + ", ".join(f"{y:.3g}" for _, y in points[1:])
        parts.append(path(drawn, "frozen", title=title, stroke_opacity=depth))
        ends.append((drawn[-1][1], f"{layer} {points[-1][1]:.3g}"))
    at = 0.0
    for y, words in sorted(ends):
        at = max(y, at + 13)
        parts.append(text(48 + width, at + 4, words, "small"))
    height = max(height, at + 20)
    parts += [path([(40, 20), (40, 200), (40 + width, 200)], "soft")]
    parts += [text(36, y, of, "small", anchor="end") for y, of in ((204, "0"), (26, f"{top:.3g}"))]
    parts.append(text(40 + width, height - 4, f"base {last}", "small", anchor="end"))
    return drawing(60 + width + NAMES, height, parts, "drift of the base by layer")


def tasks(scores: Sequence[Row]) -> str:
    """Draw each task's scores by iteration, a small picture each, all to one scale."""
    names = sorted({row["task"] for row in scores})
    last = max((row["iteration"] for row in scores), default=0)
    if not last:
        return ""
    values = [100 * row["value"] for row in scores]
    low, span = min(values), max(4.0, max(values) - min(values))
    parts = (_task(pick(scores, task=name), last, low, span) for name in names)
    return f'<div class="many">{"".join(parts)}</div>'


def _task(rows: Sequence[Row], last: int, low: float, span: float) -> str:
    """Draw one task's scores; ``low`` and ``span``: of the scale, in points."""
    name, parts = rows[0]["task"], []
    parts.append(text(4, 14, name, "strong"))
    parts.append(text(206, 14, rows[0]["group"], "small", anchor="end"))
    parts.append(path([(4, 90), (206, 90)], "soft"))
    for protocol in ALL_PROTOCOLS:
        own = {r["iteration"]: 100 * r["value"] for r in rows if r["protocol"] == protocol}
        drawn = [(8 + x / last * 190, 88 - (own[x] - low) / span * 66) for x in sorted(own)]
        if drawn:
            parts.append(path(drawn, protocol))
        for (x, y), iteration in zip(drawn, sorted(own), strict=True):
            title = f"{name}, {protocol}, base {iteration}: {own[iteration]:.1f}"
            parts.append(circle(x, y, 3, protocol, title=title))
    return drawing(212, 104, parts, f"scores of {name}")


def legend(protocols: Iterable[str]) -> str:
    """Return which colour a protocol has, as a line of HTML."""
    return " ".join(f'<span class="key {name}">{name}</span>' for name in protocols)


def drawings(run: RunDirectory, progress: Progress) -> str:
    """Return the pictures of a run, with their titles and what they show, as HTML.

    Args:
        run: with what it has so far.
        progress: its state, for what the workers did.
    """
    repository = Repository(run.folder)
    line, scores = repository.line(), run.scores
    if not line:
        return ""
    there = {one["iteration"]: one for one in line}
    manifests = [there.get(n) or repository.manifest(n) for n in repository.numbers()]
    told = {number: summary(scores, number) for number in {row["iteration"] for row in scores}}
    several = (one for one in reversed(line) if len(one.get("cosines") or {}) > 1)
    newest: Manifest = next(several, {})
    keys = legend(p for p in ALL_PROTOCOLS if pick(scores, protocol=p))
    found = [
        (
            "Lineage",
            lineage(manifests, [*there], told),
            "Each base and the one it was made from; ringed is the latest. Below the line is what "
            "a rollback left behind; red is what the gate rejected.",
        ),
        (
            "Who contributed when",
            contributed(line),
            "Green was fused, the deeper the more its finetuning gained on dev; red was refused, "
            "grey did not answer.",
        ),
        (
            "Scores, task by task",
            tasks(scores),
            f"All to one scale, from the lowest to the highest score. {keys}",
        ),
        (
            f"Contributions to base {newest.get('iteration', '')}",
            cosines(newest),
            "The cosine of what two of them add. Near 0 they change different things.",
        ),
        (
            "Drift from the start",
            drift(line),
            "L2 norm of each layer's difference from the start, base by base.",
        ),
        (
            "Workers",
            timeline(progress),
            f"Since the run was started or resumed. {legend(('finetune', 'evaluate', 'validate'))}",
        ),
    ]
    return "".join(
        f"<h3>{title}</h3>{picture}<p class=note>{note}</p>"
        for title, picture, note in found
        if picture
    )
