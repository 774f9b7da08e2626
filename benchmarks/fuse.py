"""Whole-process time and peak anonymous memory of fusing models of RoBERTa-base's size.

    python -m benchmarks.fuse [--mergekit PYTHON] [--models 8] [--rules average,ties] [--many]

Ours is ``cold-flower fuse``, the peers are mergekit (the interpreter of an environment that has
it, ``pip install mergekit``) and Flower's own strategies on the same tensors, each in a
process of its own, on the same files, one after the other. Anonymous memory (RssAnon) is
sampled every 10 ms; mapped files do not count, for anyone. ``--many`` fuses 4, 16 and 64
models instead, which are links to 8 files: our peak must not grow.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import machine, results
from cold_flower.commands.data_statistics import FILE, print_of
from cold_flower.models.folder import WEIGHTS
from strategies.fusion import Weights, load, names, write_safetensors
from strategies.fusion._deltas import learned
from strategies.fusion._statistics import prefix

FLOWER = {
    "FedAvg": "average",
    "FedMedian": "median",
    "FedTrimmedAvg": "trimmed_mean",
    "Krum": "krum",
    "MultiKrum": "multi_krum",
}
RULES = [name for name in names() if name != "fednova"]  # a folder does not say its steps
Named = dict[str, torch.Tensor]
MERGEKIT = {"linear": "average", "task_arithmetic": "task_arithmetic", "ties": "ties"}


def write_models(folder: Path, count: int, layers: int) -> tuple[Path, list[Path]]:
    """Write a base and finetuned copies, random: of 12 layers, 125 million parameters each."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    shape = RobertaConfig(
        vocab_size=50_265,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_hidden_layers=layers,
        architectures=[],
    )
    torch.manual_seed(0)
    base = folder / "base"
    RobertaForMaskedLM(shape).save_pretrained(base, max_shard_size="100GB")
    (base / "vocab.txt").write_text("\n".join(f"word{i}" for i in range(shape.vocab_size)))
    theta = Weights(base / WEIGHTS)
    made = []
    for i in range(count):
        copy = folder / f"model-{i}"
        copy.mkdir()
        (copy / "config.json").write_text((base / "config.json").read_text())
        generator = torch.Generator().manual_seed(i + 1)

        def moved(generator: torch.Generator = generator) -> Iterator[tuple[str, torch.Tensor]]:
            for key, tensor in theta.items():
                yield key, tensor + 1e-3 * torch.randn(tensor.shape, generator=generator)

        write_safetensors(copy / WEIGHTS, theta.template(), moved(), {"format": "pt"})
        made.append(copy)
    return base, made


def write_statistics(kind: str, models: Sequence[Path]) -> list[Path]:
    """Write a statistic of each model, random, as ``cold-flower statistics`` lays it down."""
    made = []
    for number, model in enumerate(models):
        folder = model.with_name(f"{kind}-{number}")
        made.append(folder)
        if (folder / FILE).exists():
            continue
        folder.mkdir(exist_ok=True)
        whole = {
            key.removeprefix("roberta."): tensor
            for key, tensor in Weights(model / WEIGHTS).items()
            if key.startswith("roberta.")
        }
        generator = torch.Generator().manual_seed(number)
        given = {"fisher": _fisher, "gram": _gram}[kind](whole, generator)
        found = {prefix(kind) + key: tensor for key, tensor in given}
        facts = {"kind": kind, "model": str(model), "body": print_of(whole)}
        write_safetensors(folder / FILE, Weights(found).template(), found.items(), facts)
    return made


def _fisher(body: Named, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    for key, tensor in body.items():
        yield key, torch.randn(tensor.shape, generator=generator).square()


def _gram(body: Named, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the Gram matrix of 1,024 tokens for each input of a layer."""
    dense = [key for key in body if key.startswith("encoder.layer") and body[key].dim() == 2]
    for key in dense:
        if ".key." in key or ".value." in key:
            continue  # these read what the query reads
        readers = [key.replace("query", part) for part in ("query", "key", "value")]
        rows, size = body[key].shape
        x = torch.randn(1024, size, generator=generator)
        whole = (x.T @ x / len(x))[tuple(torch.triu_indices(size, size))]
        yield ",".join(dict.fromkeys(readers)), x.square().mean(0) if size > rows else whole


def measure(command: Sequence[str], log: Path) -> dict[str, float]:
    """Run a command; return its seconds and peak anonymous bytes, children included."""
    started, peak = time.monotonic(), 0
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return {"seconds": time.monotonic() - started, "gigabytes": peak / 1e9}


def _anonymous(pid: int) -> int:
    """Return RssAnon of a process and its children."""
    total = machine.anonymous(pid)
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = (task / "children").read_text().split()
            total += sum(_anonymous(int(child)) for child in children)
    except OSError:  # it ended meanwhile
        pass
    return total


def ours(rule: str, base: Path, models: Sequence[Path], out: Path) -> list[str]:
    """Return our command."""
    call = (
        "import sys; from cold_flower.commands.cli import main; sys.argv[0] = 'cold-flower'; main()"
    )
    given = ["fuse", rule, "--base", str(base), "--out", str(out), *map(str, models)]
    if kind := getattr(load(rule), "statistic", ""):
        for folder in write_statistics(kind, models):
            given += ["--statistics", str(folder)]
    return [sys.executable, "-c", call, *given]


def mergekit(python: str, method: str, base: Path, models: Sequence[Path], out: Path) -> list[str]:
    """Write a configuration for mergekit and return its command."""
    parameters = {"linear": {"weight": 1.0}, "task_arithmetic": {"weight": 0.3}}
    each = parameters.get(method, {"weight": 1.0, "density": 0.2})
    table = {
        "merge_method": method,
        "models": [{"model": str(model), "parameters": each} for model in models],
        "dtype": "float32",
    }
    if method != "linear":
        table["base_model"] = str(base)
    recipe = out.with_suffix(".yml")
    recipe.write_text(json.dumps(table))  # JSON is YAML
    tool = str(Path(python).parent / "mergekit-yaml")
    return [tool, str(recipe), str(out), "--no-copy-tokenizer", "--no-write-model-card"]


def flower(kind: str, models: Sequence[Path]) -> None:
    """Aggregate with one of Flower's strategies, as its server does; run in a process."""
    import flwr.serverapp.strategy as stock
    from flwr.app import Message, MetricRecord, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from strategies import records

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    replies = []
    for node, model in enumerate(models):
        content = RecordDict(
            {
                records.ARRAYS: records.pack(Weights(model / WEIGHTS).items()),
                records.METRICS: MetricRecord({records.EXAMPLES: 1}),
            }
        )
        asked = Message(RecordDict(), node, "train")
        replies.append(Message(content, reply_to=asked))
    options = {"num_malicious_nodes": 1} if "Krum" in kind else {}
    arrays, _ = getattr(stock, kind)(**options).aggregate_train(1, replies)
    assert arrays is not None


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    """Fuse the same models with everybody."""
    base, models = write_models(folder, arguments.models, arguments.layers)
    found: dict[str, dict[str, float]] = {}

    def run(name: str, command: Sequence[str]) -> None:
        found[name] = said = measure(command, folder / "log")
        print(f"{name:28} {said['seconds']:7.1f} s {said['gigabytes']:7.2f} GB", flush=True)

    rules = arguments.rules.split(",") if arguments.rules else RULES
    for rule in rules:
        run(f"ours {rule}", ours(rule, base, models, folder / f"ours-{rule}"))
    if arguments.mergekit:
        for method, rule in MERGEKIT.items():
            if rule in rules:
                out = folder / f"mergekit-{method}"
                command = mergekit(arguments.mergekit, method, base, models, out)
                run(f"mergekit {method}", command)
    for kind, rule in FLOWER.items():
        if rule in rules:
            alone = [sys.executable, "-m", "benchmarks.fuse", "--flower", kind]
            run(f"flwr {kind}", [*alone, *map(str, models)])
    peers = {f"mergekit {m}": r for m, r in MERGEKIT.items()}
    peers |= {f"flwr {k}": r for k, r in FLOWER.items()}
    for peer, rule in peers.items():
        if peer in found and arguments.layers == 12:
            theirs, mine = found[peer], found[f"ours {rule}"]
            what = f"fuse {rule}, {arguments.models} x 500 MB"
            results.keep(what, mine["seconds"], peer, theirs["seconds"], "s")
            results.keep(f"{what}: memory", mine["gigabytes"], peer, theirs["gigabytes"], "GB")
    if "ours average" in found and "mergekit linear" in found:
        print(f"largest difference, average to linear: {_apart(folder):.1e}")


def _apart(folder: Path) -> float:
    """Return the largest difference of our average from mergekit's linear."""
    mine = Weights(folder / "ours-average" / WEIGHTS)
    files = sorted((folder / "mergekit-linear").glob("*.safetensors"))
    theirs = {key: tensor for file in files for key, tensor in Weights(file).items()}
    body = [key for key in learned(mine) if key.startswith("roberta.") and key in theirs]
    return max(float((mine.get(key) - theirs[key]).abs().max()) for key in body)


def many(folder: Path, arguments: argparse.Namespace) -> None:
    """Fuse ever more models; they are links to 8 files."""
    base, models = write_models(folder, 8, arguments.layers)
    rules = arguments.rules.split(",") if arguments.rules else RULES
    for rule in rules:
        for count in (4, 16, 64):
            links = []
            for i in range(count):
                link = folder / f"{count}-{i}"
                if not link.exists():
                    link.symlink_to(models[i % len(models)])
                links.append(link)
            out = folder / f"{rule}-{count}"
            options = ["--option", "byzantine=0"] if "krum" in rule else []  # 1 needs 5 models
            said = measure([*ours(rule, base, links, out), *options], folder / "log")
            subprocess.run(["rm", "-r", str(out)], check=True)
            print(
                f"{rule:18} {count:3} models {said['seconds']:7.1f} s {said['gigabytes']:7.2f} GB",
                flush=True,
            )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--layers", type=int, default=12, help="fewer to try it; not a result")
    parser.add_argument("--rules", default="", help="comma-separated; all by default")
    parser.add_argument("--mergekit", default="", help="a Python that has mergekit")
    parser.add_argument("--many", action="store_true")
    parser.add_argument("--flower", default="", help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.flower:
        flower(arguments.flower, [Path(path) for path in arguments.paths])
        return
    with tempfile.TemporaryDirectory(prefix="fuse-") as folder:
        (many if arguments.many else compare)(Path(folder), arguments)


if __name__ == "__main__":
    main()
