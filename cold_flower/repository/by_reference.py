"""Bodies by reference, through a run directory that server and contributors share.

With ``transport = "shared-dir"`` a message names an iteration instead of carrying its weights.
The contributor reads that base from the run directory and leaves its own body in the inbox
there. The contributor checks the base's sha256, the server that what it reads is what was written
(`strategies.contributions`). Whoever can write into the run directory has to be
trusted, so this is for simulations, on one machine or a cluster, and not for sites.
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
    """Check that a run can send bodies by reference, if it is to.

    Raises:
        ConfigError: the contributors would not know its directory, or they are sites.
    """
    if config.transport == "message":
        return
    if not config.run_dir:
        raise ConfigError("transport = 'shared-dir' needs run-dir, an absolute path for all nodes")
    if config.sites.allow:
        raise ConfigError("transport = 'shared-dir' is for simulations: sites share no directory")


def base(run_dir: str, iteration: int, sha256: str) -> dict[str, Tensor]:
    """Open a published base, mapped into memory; it has the sha256 that the server gave.

    Raises:
        RunError: it is not there, or has another sha256.
    """
    repository = Repository(Path(run_dir))
    body = repository.body(iteration)
    file = (repository.path(iteration) / WEIGHTS).stat()
    actual = _fingerprint(run_dir, iteration, file.st_mtime_ns)
    if actual != sha256:
        raise RunError(
            f"iteration {iteration} in {run_dir} is {actual[:12]}, the server means {sha256[:12]}: "
            "is the run directory the same one here?"
        )
    return dict(body.items())


@functools.lru_cache(maxsize=4)
def _fingerprint(run_dir: str, iteration: int, changed: int) -> str:
    """Hash a base, once in each process; again if ``changed``, the file's time, is another."""
    return fingerprint(Repository(Path(run_dir)).body(iteration).items())
