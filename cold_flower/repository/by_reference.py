"""Bodies by reference, over a run directory that server and contributors share.

With ``transport = "shared-dir"`` a message names an iteration instead of carrying its weights;
the contributor reads that base from the run directory, and leaves its own body in the inbox
there. Each side checks the other's sha256. Who can write into the run directory is trusted with
it, so this is for simulations, on one machine or a cluster, and not for sites.
"""

import functools
from pathlib import Path

from torch import Tensor

from cold_flower.config import Config
from cold_flower.errors import ConfigError, RunError
from cold_flower.models.folder import WEIGHTS
from cold_flower.repository.bases import Repository
from strategies.fusion import fingerprint


def check(config: Config) -> None:
    """Check that a run can go by reference, if it is to.

    Raises:
        ConfigError: it has no directory that contributors know, or it is of sites.
    """
    if config.transport == "message":
        return
    if not config.run_dir:
        raise ConfigError("transport = 'shared-dir' needs run-dir, an absolute path for all nodes")
    if config.sites.allow:
        raise ConfigError("transport = 'shared-dir' is for simulations: sites share no directory")


def base(run_dir: str, iteration: int, sha256: str) -> dict[str, Tensor]:
    """Open a published base, mapped; it is the one that the server means.

    Raises:
        RunError: it is not there, or is another.
    """
    repository = Repository(Path(run_dir))
    body = repository.body(iteration)
    file = (repository.path(iteration) / WEIGHTS).stat()
    found = _fingerprint(run_dir, iteration, file.st_mtime_ns)
    if found != sha256:
        raise RunError(
            f"iteration {iteration} in {run_dir} is {found[:12]}, the server means {sha256[:12]}: "
            "is the run directory the same one here?"
        )
    return dict(body.items())


@functools.lru_cache(maxsize=4)
def _fingerprint(run_dir: str, iteration: int, changed: int) -> str:
    """Hash a base once for each worker; ``changed`` tells a file from one that replaced it."""
    return fingerprint(Repository(Path(run_dir)).body(iteration).items())
