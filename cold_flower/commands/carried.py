"""What of a base's folder goes along into the fused one: all that makes it load as before.

Configuration, tokenizer and the model's own code; a sentence-transformers folder's modules.
Never weights, pickles and a trainer's state; nothing that a link would bring from elsewhere.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from cold_flower.models import vocabularies
from cold_flower.models.folder import BESIDE, Folder

CONFIG, MODULES = "config.json", "modules.json"
_OF_RUNS = ("manifest.json", "trainer_state.json")
_READ = (
    CONFIG,
    vocabularies.FULL,
    vocabularies.SETTINGS,
    vocabularies.ADDED,
    *vocabularies.PLAIN,
    *vocabularies.MERGES,
)
_HEAVY = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".onnx",
    ".ot", ".gguf", ".npz", ".npy", ".tflite",
)  # fmt: skip


def copy(base: Folder, to: Path) -> list[str]:
    """Copy what goes along; return a line for each thing that something may miss."""
    root = base.path.resolve()
    # The hub's cache is made of links to its own blobs.
    home = root.parent.parent if root.parent.name == "snapshots" else root
    modules = _modules(root)
    said = []
    for path in sorted(_kept(root, modules)):
        name = path.relative_to(root)
        # A link to what transformers reads is followed, as transformers follows it.
        if not (_is_read(path) or path.resolve().is_relative_to(home)):
            said.append(f"{name} is a link that leads out of {base.path}: not carried")
            continue
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, to / name)
    config = json.loads((to / CONFIG).read_text("utf-8"))
    if config.pop("transformers_weights", None):  # the fused ones have the usual name
        (to / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False), "utf-8")
    for module in sorted(modules):
        held = [file.suffix for file in (root / module).glob("*")]
        if ".bin" in held and ".safetensors" not in held:
            said.append(
                f"{module} has its weights in a pickle: not carried; save the base again with "
                "sentence-transformers, which writes safetensors"
            )
    return said


def _is_read(path: Path) -> bool:
    return path.name in _READ or path.suffix in vocabularies.PIECES


def _kept(root: Path, modules: set[str]) -> Iterator[Path]:
    for folder in root.iterdir():
        if folder.is_file() and folder.suffix in BESIDE and folder.name not in _OF_RUNS:
            if not folder.name.endswith(".index.json"):  # of the base's weights
                yield folder
        elif folder.is_dir() and not folder.is_symlink() and folder.name[0] != ".":
            held = [path for path in folder.rglob("*") if path.is_file()]
            if folder.name in modules:
                yield from (path for path in held if path.suffix in (*BESIDE, ".safetensors"))
            elif not any(path.suffix in _HEAVY for path in held):  # else it is another model
                yield from (path for path in held if path.suffix in BESIDE)


def _modules(root: Path) -> set[str]:
    """Return the sub-folders that sentence-transformers loads."""
    path = root / MODULES
    listed = json.loads(path.read_text("utf-8")) if path.exists() else []
    return {str(module["path"]) for module in listed if module.get("path")}
