"""What MkDocs makes of these pages beside what it does itself (mkdocs.yml names this file).

The front page is README.md, CHANGELOG.md and CONTRIBUTING.md are pages, and the API reference is
made of docstrings. Links to code, which lead out of the site, become the file's name.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "index.md": "README.md",
    "changes.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
REFERENCE = {
    "Run an experiment": (
        *("commands.api.simulate", "commands.api.compare", "commands.api.tune"),
        "commands.api.evaluate",
    ),
    "Read a run": ("reporting.run.open_run", "reporting.run.Run", "reporting.run.Gain"),
    "Models": (
        *("commands.api.fuse", "commands.api.statistics", "commands.contribute.contribute"),
        *("commands.card.card", "commands.publish.publish", "commands.worth.worth"),
        "commands.leave.leave",
    ),
    "Suites": ("data.suite.load_suite", "data.suite.Suite"),
    "A trainer of a site's own": ("contributors.trainer",),
}
FUSION = ("strategies.cold_fusion.ColDFusion", "strategies.fusion")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for page, source in PAGES.items():
        text = re.sub(r"\]\(docs/", "](", (ROOT / source).read_text("utf-8"))
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "reference.md", content=_reference()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Lead links to README and others to their pages, and links to code nowhere."""
    for page, source in PAGES.items():
        markdown = re.sub(rf"\]\((\.\./)?{re.escape(source)}", f"]({page}", markdown)
    code = r"\[([^\]]+)\]\((?:\.\./)?(?:cold_flower|strategies|simulations|tests|benchmarks)[^)]*\)"
    return re.sub(code, r"\1", markdown)


def _reference() -> str:
    parts = ["# API reference\n", "What the pages explain, name by name: [Python API](api.md).\n"]
    for title, names in REFERENCE.items():
        parts.append(f"## {title}\n")
        parts += [f"::: cold_flower.{name}\n" for name in names]
    parts.append("## Fusion\n")
    parts += [f"::: {name}\n" for name in FUSION]
    return "\n".join(parts)
