"""Figures as files: their bytes, and the folder beside a report."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

KINDS = ("png", "svg")


def drawn(figure: Figure, kinds: Sequence[str] = KINDS) -> dict[str, bytes]:
    """Return the bytes of a figure's ``png`` and ``svg`` files, by kind."""
    files = {}
    for kind in kinds:
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=150)
        files[kind] = file.getvalue()
        figure.set_layout_engine(None)  # where things are is known now; to find it is most work
    return files


def replace(folder: Path, before: Iterable[str], images: Mapping[str, Mapping[str, bytes]]) -> None:
    """Write figures into a folder, as PNG and SVG; others that were there before go away.

    Args:
        folder: need not be there.
        before: names of the figures that an earlier report put there.
        images: by name, what `drawn` returns.
    """
    folder.mkdir(exist_ok=True)
    for name in before:
        if name not in images and Path(name).name == name:
            for kind in KINDS:
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
    for name, files in images.items():
        for kind, data in files.items():
            (folder / f"{name}.{kind}").write_bytes(data)
