"""`cold-flower publish`: put bases of a run on the hub, a revision each."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from cold_flower.errors import RunError, first_line
from cold_flower.models.folder import WEIGHTS
from cold_flower.reporting.card import card
from cold_flower.reporting.runs import RunDirectory, configuration
from cold_flower.repository.bases import Repository
from cold_flower.repository.provenance import CARD, licence_of
from cold_flower.server.finetuned import files


def publish(
    run_dir: str | Path,
    iteration: int | None = None,
    *,
    to: str,
    licence: str = "",
    contributors: bool = True,
    public: bool = False,
    dry_run: bool = False,
    say: Callable[[str], object] = print,
) -> list[str]:
    """Put bases of a run on the hub; a second call goes on after a stop.

    Each base is a commit with a tag of its own, ``iteration-3``, under which it is had again:
    ``owner/name@iteration-3``. What has its tag already is left as it is.

    Args:
        run_dir: of the run.
        iteration: whose base; None is every base of the lineage that has its weights.
        to: ``owner/name``; it is made if it is not there.
        licence: of the bases; empty is that of the starting model's card, if it names one.
        contributors: whether the cards name them; else they are counted.
        public: whether everybody may see a repository that is made; needs a licence.
        dry_run: say what would be sent, and send nothing.
        say: takes a line for each base.

    Returns:
        The tags that are there now.

    Raises:
        RunError: no run, no such base, or one without weights; the hub refuses, or is not there.
    """
    folder = Path(run_dir).resolve()
    run, repository = RunDirectory(folder, configuration(folder)), Repository(folder)
    numbers = _chosen(repository, iteration, say)
    if public and not (licence or licence_of(Path(str(run.config["base-model"])))):
        raise RunError("a public model needs a licence: --licence, such as apache-2.0")
    sent = {number: files(repository.with_weights(number)) for number in numbers}
    if dry_run:
        for number, found in sent.items():
            size = sum(path.stat().st_size for path in found.values())
            names = ", ".join(sorted({*found, CARD}))
            say(f"would send {to}@{_tag(number)}: {names}; {size / 1e6:.1f} MB")
        return []
    api = HfApi()
    with _naming(to):
        api.create_repo(to, private=not public, exist_ok=True)
        there = {tag.name for tag in api.list_repo_refs(to).tags}
    for number, found in sent.items():
        tag = _tag(number)
        if tag in there:
            say(f"{to}@{tag} is there")
            continue
        place = f'"{to}", revision="{tag}"'
        text = card(run, number, licence=licence, contributors=contributors, place=place)
        added = [CommitOperationAdd(CARD, text.encode())]
        added += [CommitOperationAdd(n, path) for n, path in found.items() if n != CARD]
        with _naming(to):
            made = api.create_commit(to, added, commit_message=f"base {number}")
            api.create_tag(to, tag=tag, revision=made.oid, exist_ok=True)
        say(f"{to}@{tag} is published")
    return [_tag(number) for number in numbers]


def _tag(number: int) -> str:
    return f"iteration-{number}"


def _chosen(
    repository: Repository, iteration: int | None, say: Callable[[str], object]
) -> Sequence[int]:
    """Return whose bases are to be published.

    Raises:
        RunError: nothing is published yet.
    """
    if iteration is not None:
        return [iteration]
    lineage = repository.lineage()
    kept = [number for number in lineage if (repository.path(number) / WEIGHTS).exists()]
    if gone := [str(number) for number in lineage if number not in kept]:
        say(f"left out, without weights any more (keep-iterations): {', '.join(gone)}")
    if not kept:
        raise RunError(f"{repository.folder.parent}: no base is published yet")
    return kept


@contextmanager
def _naming(to: str) -> Iterator[None]:
    """Say of an error of the hub's what was to be sent where, and how to go on."""
    try:
        yield
    except Exception as error:  # the hub's client raises what its many back ends raise
        cause = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
        raise RunError(
            f"cannot publish to {to}: {first_line(error)}{cause}. Log in with `hf auth login`, or "
            "set HF_TOKEN; the same command goes on"
        ) from error
