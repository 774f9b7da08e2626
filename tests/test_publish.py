"""Publishing bases to a stand-in for the hub, and loading them from it, by the real client."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from cold_flower.models.folder import Folder
from cold_flower.repository.bases import Repository
from strategies.fusion import fingerprint
from tests.hub import Hub, hub
from tests.test_cli import cold_flower as command
from tests.test_html import make  # noqa: F401 - a fixture

TO = "me/evolved"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's


@pytest.fixture
def there():
    with hub() as one:
        yield one


MAIN = "import sys; from cold_flower.commands.cli import main; sys.argv[0] = 'x'; main()"


def client(
    there: Hub, tmp_path: Path, *code: str, kill: Callable[[str], bool] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python with the hub where it stands in: the library reads HF_ENDPOINT when imported.

    It is killed -9 as it asks what ``kill`` is true of.
    """
    environment = {
        **os.environ,
        "HF_ENDPOINT": there.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_secret",
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    command = [sys.executable, *code]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip

        def stop(line: str) -> bool:
            if found := kill is not None and kill(line):
                process.kill()
            return found

        there.stop_before = stop
        out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def publish(
    there: Hub, tmp_path: Path, run: Path, *more: str, kill: Callable[[str], bool] | None = None
) -> subprocess.CompletedProcess[str]:
    return client(there, tmp_path, "-c", MAIN, "publish", str(run), "--to", TO, *more, kill=kill)


@pytest.fixture
def here(there, monkeypatch):
    """Return the command, in this process."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", there.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    def run(run: Path, *more: str) -> subprocess.CompletedProcess[str]:
        return command("publish", str(run), "--to", TO, *more, cwd=run)

    return run


def shas(there: Hub) -> dict[str, dict[str, str]]:
    if not (at := there.repositories.get(TO)):
        return {}
    return {tag: at.commits[commit] for tag, commit in at.tags.items()}


def test_each_base_is_a_revision_and_comes_back_as_it_was(make, there, tmp_path) -> None:  # noqa: F811
    run = make("mine", 0.1)
    (run / "iterations" / "0001" / "fusion-state.safetensors").write_bytes(b"memory")
    done = publish(there, tmp_path, run, "--licence", "mit", "--no-contributors")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{TO}@iteration-{i} is published" for i in range(3)]
    assert there.repositories[TO].private
    found = shas(there)
    assert list(found) == ["iteration-0", "iteration-1", "iteration-2"]
    sent = {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert sent <= found["iteration-2"].keys()
    assert not {"manifest.json", "fusion-state.safetensors"} & found["iteration-2"].keys()
    card = ModelCard(there.blobs[found["iteration-2"]["README.md"]].decode())
    assert card.data.license == "mit"
    assert f'from_pretrained("{TO}", revision="iteration-2"' in card.text
    assert "they are not named here" in card.text
    # Again: all is there. And loaded from there, by Folder and as a base model.
    again = publish(there, tmp_path, run)
    assert again.stdout.splitlines() == [f"{TO}@iteration-{i} is there" for i in range(3)]
    load = f"""
from cold_flower.models.base import load_base
from cold_flower.models.folder import Folder
from cold_flower.models.starting import starting_model
from strategies.fusion import Weights, fingerprint
folder = Folder("{TO}@iteration-1")
print(fingerprint(Weights(folder, stored_as=folder.body).items()))
base = load_base("{TO}@iteration-1")
print(base.name, fingerprint(starting_model(base, 0)[1].items()))
"""
    loaded = client(there, tmp_path, "-c", load)
    assert loaded.returncode == 0, loaded.stderr[-2000:]
    folder = Folder(str(run / "iterations" / "0001"))
    body = {key: folder[stored] for key, stored in folder.body.items()}
    name, whole = loaded.stdout.split()[1:]
    assert loaded.stdout.split()[0] == fingerprint(body.items())
    assert (name, whole) == (f"{TO}@iteration-1", Repository(run).sha256(1))
    missing = client(
        there, tmp_path, "-c",
        f"from cold_flower.models.folder import Folder; Folder('{TO}@iteration-9')",
    )  # fmt: skip
    assert f"model {TO}@iteration-9: neither a folder nor to be had from the hub" in missing.stderr


@pytest.mark.parametrize("where", ["PUT", "commit", "tag"])
def test_what_was_cut_off_goes_on(make, there, here, where) -> None:  # noqa: F811
    """While weights are sent, before a commit, and between a commit and its tag."""
    run = make("mine", 0.1)
    seen = []

    def stop(line: str) -> bool:
        if line.startswith("PUT") if where == "PUT" else f"/{where}/" in line:
            seen.append(line)
        return len(seen) > 1

    there.stop_before = stop
    cut = here(run)
    assert cut.returncode == 1, cut.stdout
    assert f"error: cannot publish to {TO}: " in cut.stderr
    assert "the same command goes on" in cut.stderr
    assert "hf_secret" not in cut.stdout + cut.stderr
    assert list(shas(there)) == ["iteration-0"]
    sent = sum(line.startswith("PUT") for line in there.asked)
    there.stop_before = lambda line: False
    done = here(run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"{TO}@iteration-0 is there"
    assert list(shas(there)) == ["iteration-0", "iteration-1", "iteration-2"]
    files = Repository(run).folder
    for i in range(3):
        weights = there.blobs[shas(there)[f"iteration-{i}"]["model.safetensors"]]
        assert weights == (files / f"{i:04d}" / "model.safetensors").read_bytes()
    if where == "tag":  # what was there is not sent again
        assert len([line for line in there.asked if line.startswith("PUT")]) == sent + 1


def test_a_kill_in_the_middle_loses_nothing(make, there, tmp_path) -> None:  # noqa: F811
    run = make("mine", 0.1)
    killed = publish(there, tmp_path, run, kill=lambda _: "iteration-0" in shas(there))
    assert killed.returncode == -signal.SIGKILL
    assert list(shas(there)) == ["iteration-0"]
    done = publish(there, tmp_path, run)
    assert done.stdout.splitlines() == [
        f"{TO}@iteration-0 is there",
        *(f"{TO}@iteration-{i} is published" for i in (1, 2)),
    ]
    for i, files in enumerate(shas(there).values()):
        weights = run / "iterations" / f"{i:04d}" / "model.safetensors"
        assert there.blobs[files["model.safetensors"]] == weights.read_bytes()


def test_a_dry_run_sends_nothing_and_public_needs_a_licence(make, there, here) -> None:  # noqa: F811
    run = make("mine", 0.1)
    dry = here(run, "1", "--dry-run")
    assert dry.stdout.startswith(f"would send {TO}@iteration-1: README.md, config.json, ")
    public = here(run, "--public")
    assert (public.returncode, there.asked) == (1, [])
    assert "a public model needs a licence" in public.stderr
    one = here(run, "2", "--public", "--licence", "mit")
    assert one.returncode == 0, one.stderr
    assert list(shas(there)) == ["iteration-2"]
    assert not there.repositories[TO].private
