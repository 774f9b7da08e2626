"""Whether a run may write where it is to go: `runs/NAME-TIME` below the current folder."""

import tempfile
from pathlib import Path

from cold_flower.errors import RunError


def check_writable(run_dir: Path) -> None:
    """Check that a run can write its directory, and the log beside it; leave no trace.

    Raises:
        RunError: naming the folder, and the way out.
    """
    for place in (run_dir, run_dir.parent):
        folder = next(path for path in (place, *place.parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise RunError(
                f"cannot write into {folder} ({error.strerror}), where the run directory "
                f"{run_dir} is to be: name another place with --run-dir"
            ) from error
