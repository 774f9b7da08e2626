"""`cold-flower contribute`: put a finetuned model into a run's drop box, checked first."""

from collections.abc import Callable
from pathlib import Path

from cold_flower.commands.history import resume
from cold_flower.config import Config
from cold_flower.errors import RunError
from cold_flower.models.adapter import is_adapter
from cold_flower.reporting.runs import configuration
from cold_flower.repository.bases import Repository
from cold_flower.repository.dropbox import Dropbox, Stated, folder_of
from cold_flower.repository.journal import RESULT, Journal
from cold_flower.repository.provenance import CARD
from cold_flower.repository.publish import check_space
from cold_flower.server.drops import lacking
from cold_flower.server.finetuned import examine, files
from cold_flower.server.participants import names_of
from strategies.names import NAME


def contribute(
    run_dir: str | Path,
    model: str | Path,
    *,
    name: str,
    base: int | None = None,
    examples: int = 0,
    say: Callable[[str], object] = print,
) -> Path:
    """Put a finetuned model into a run's drop box; return its folder there.

    Args:
        run_dir: of a run that is at work, or ended, with at least its start.
        model: a transformers folder, or a model of the hub; or the folder of a LoRA adapter.
        name: of the contribution.
        base: the iteration whose base it was finetuned from; None looks for the nearest.
        examples: how many it was finetuned on; 0 says nothing.
        say: takes a line each of what it was recognised as, of its licence, and how to go on.

    Raises:
        RunError: no run; a name that cannot be, or that waits already.
        ModelError: a model that the run could not fuse.
    """
    run_dir, model = Path(run_dir), str(model)
    config = Config.from_flat(configuration(run_dir))
    repository = Repository(run_dir)
    if repository.latest() is None:
        raise RunError(f"{run_dir} has no base yet: wait until iteration 0 is published")
    if not NAME.fullmatch(name):
        raise RunError(f"not a contributor name: {name!r} (expected {NAME.pattern})")
    journal = Journal(run_dir)
    if name in journal.left():
        raise RunError(f"{name} left {run_dir} for good: it is refused")
    if name in names_of(config, journal):
        raise RunError(f"{run_dir} has a contributor {name}: choose another --name")
    if examples < 0:
        raise RunError(f"--examples is {examples}, expected 1 or more")
    sha256 = "" if base is None else repository.sha256(base)
    stated = Stated(sha256, examples)
    lacking(config, stated)
    found = examine(model, repository, config.staleness, stated=sha256)
    copied = files(found.path)
    box = Dropbox(folder_of(config, run_dir))
    check_space(sum(path.stat().st_size for path in copied.values()), box.folder)
    # An adapter's configuration names its base by a path, which may be another's from elsewhere.
    said = Stated(found.base, examples) if is_adapter(found.path) else stated
    where = box.put(name, copied, said)
    say(f"{name} waits in {where}: finetuned from {found.recognised}")
    if not found.licence:
        say(f"no {CARD} in {model} names a licence; the manifest will name none")
    if (run_dir / RESULT).exists():
        more = max(repository.numbers()[-1] + 1, config.iterations)
        say(f"the run has ended; it takes this with {resume(run_dir, more)}")
    return where
