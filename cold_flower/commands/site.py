"""The commands of partner sites: `cold-flower site ...` and `cold-flower deploy`."""

import json
import shlex
from errno import ENOSPC
from pathlib import Path
from typing import Annotated

import tomli_w
import typer

from cold_flower.commands.options import Resume, RunDir, Settings, exit_code_of_a_stop
from cold_flower.errors import ColdFlowerError, SiteError
from strategies.errors import StrategyError

app = typer.Typer(no_args_is_help=True, help="At a partner site (docs/deployment.md).")

TEMPLATE = """\
# This site's part in ColD Fusion; what stands here wins over the coordinator's settings.
name = {name}{pad}# as the coordinator registered it
base-model = {model}    # a local folder or a hub name; the coordinator says which model
trainer = ""                        # "my_site.train:finetune": your own loop (docs/deployment.md)
dry-run = false                     # true: do everything, write down what would leave, send nothing

[task]                              # your data, under your own names
source = "{source}"                    # files: parquet, jsonl or csv; or "hub"
path = {path}                       # a folder with <split>.*, "my-{{split}}.csv", or a hub name
text = [{text}]                     # one or two columns, or templates: "{{title}} {{body}}"
label = {label}
{labels}splits = {{ train = "train", validation = "", test = "test" }}    # "" = carved out of train

[limits]                            # 0 = no limit
min-examples = 100                  # a body that leaves was trained on so many, at least
min-test-examples = 50              # a score that leaves was counted on so many, at least
max-examples = 0                    # training examples used in an iteration
max-seconds = 0                     # of a finetuning (its best weights count) or an evaluation
micro-batch-size = 0                # lower it where memory is short; the result stays the same
threads = 0                         # cores
memory-gb = 0                       # main memory of the process
"""


@app.command()
def init(
    name: str,
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("site.toml"),
    data: Annotated[str, typer.Option(help="Folder, pattern, or hub dataset.")] = "data",
    hub: Annotated[bool, typer.Option("--hub", help="--data is a dataset of the hub.")] = False,
    text: Annotated[
        list[str] | None,
        typer.Option(help="The column with the text (default: text); twice for a pair of texts."),
    ] = None,
    label: Annotated[str, typer.Option(help="The column with the label.")] = "label",
    labels: Annotated[
        str, typer.Option(help="The class names, comma-separated (default: those in the data).")
    ] = "",
    model: Annotated[str, typer.Option(help="The base model: a folder or a hub name.")] = "",
) -> None:
    """Write a site.toml to fill in.

    Example:
    * `cold-flower site init clinic-a --data data/reviews --text review --label stars`

    * `cold-flower site init clinic-b --text premise --text hypothesis --label entails`
    """
    from cold_flower.contributors.site import load_site

    if file.exists():
        raise SiteError(f"{file} exists: name another file, or remove it")
    listed = ", ".join(_quoted(part.strip()) for part in labels.split(",") if part.strip())
    made = TEMPLATE.format(
        name=_quoted(name),
        pad=" " * max(1, 27 - len(name)),
        model=_quoted(model),
        source="hub" if hub else "files",
        path=_quoted(data),
        text=", ".join(map(_quoted, text or ["text"])),
        label=_quoted(label),
        labels=f"labels = [{listed}]\n" if listed else "",
    )
    file.write_text(made, encoding="utf-8")
    try:
        load_site(file.resolve())
    except Exception:
        file.unlink()
        raise
    checked = shlex.quote(str(file))
    typer.echo(f"{file} is written; look through it, then: cold-flower site check {checked}")


def _quoted(text: str) -> str:
    """Write any text as a TOML string."""
    return tomli_w.dumps({"_": text}).removeprefix("_ = ").rstrip("\n")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The site.toml.")] = Path("site.toml"),
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Also test the way there: the TLS handshake.")
    ] = "",
    root_certificates: Annotated[
        Path, typer.Option(help="The coordinator's CA certificate.")
    ] = Path("ca.crt"),
    set: Settings = None,
) -> None:
    """Rehearse: load data and model, finetune a little, say what would leave. Nothing leaves.

    The last line is `ready`, `ready with N warnings`, or `not ready` (exit code 1).

    Examples:
    * `cold-flower site check`

    * `cold-flower site check --superlink superlink.example.org:9092 --root-certificates ca.crt`
    """
    import transformers

    from cold_flower.commands.rehearsal import WARNING, rehearse
    from cold_flower.commands.tls import check_superlink
    from cold_flower.config import Config
    from cold_flower.contributors.site import load_site
    from cold_flower.identity import home
    from cold_flower.runtime import experiments

    transformers.logging.set_verbosity_error()  # its report of a head that is new, as it should be
    transformers.logging.disable_progress_bar()
    warnings = 0
    try:
        if superlink:
            typer.echo(check_superlink(superlink, root_certificates))
        site = load_site(file.resolve())
        config = Config.from_flat(experiments.parse_settings(set or []))
        for line in rehearse(site, config):
            typer.echo(line)
            warnings += line.startswith(WARNING)
    except (ColdFlowerError, StrategyError, OSError) as error:
        full = isinstance(error, OSError) and error.errno == ENOSPC and not error.filename
        typer.echo(f"error: {error}{f': COLD_FLOWER_HOME = {home()}' if full else ''}", err=True)
        typer.echo("not ready")
        raise typer.Exit(1) from error
    plural = "warning" if warnings == 1 else "warnings"
    typer.echo(f"ready with {warnings} {plural}" if warnings else "ready")


@app.command()
def log(
    file: Annotated[Path, typer.Argument(help="The site.toml.")] = Path("site.toml"),
    apps: Annotated[
        Path | None,
        typer.Option(metavar="FLWR_HOME", help="Also list the coordinator's apps (FABs) there."),
    ] = None,
) -> None:
    """List what left this site; with --apps, the code that came, compared with what is installed.

    Run it with COLD_FLOWER_HOME as the SuperNode had it.
    """
    from cold_flower.contributors.egress import Egress
    from cold_flower.contributors.site import load_site
    from cold_flower.identity import code_sha256, home

    # Where site.toml could not be used, what left of that is written down beside the sites'.
    nameless, sent = Egress().log, Egress(load_site(file.resolve()).name).log
    lines = [
        line for log in (nameless, sent) if log.exists() for line in log.read_text().split("\n")
    ]
    if not any(lines):
        typer.echo(
            f"there is no {sent}: nothing has left from COLD_FLOWER_HOME = {home()} (has the "
            "SuperNode that one, too?)"
        )
    for line in sorted(filter(None, lines)):  # they begin with the time
        try:
            row = json.loads(line)
        except ValueError:
            typer.echo(f"a line that was cut off (a full disk, a kill): {line}")
            continue
        state = "" if row["sent"] else " (dry-run: not sent)"
        body = f"{row['bytes']} bytes {row.get('sha256', '')}".strip()
        what = row.get("error") or (body if row["bytes"] else "numbers, no weights")
        typer.echo(f"{row['time']} {row['kind']} {row.get('iteration', '')} {what}{state}")
    if sent.exists():
        typer.echo(f"every value that left: {sent}")
    if not apps:
        return
    if not (apps / "apps").is_dir():
        raise SiteError(
            f"no apps in {apps}: expected the FLWR_HOME of a SuperNode that has run here"
        )
    installed = code_sha256()
    for app_folder in sorted((apps / "apps").iterdir()):
        same = code_sha256(app_folder) == installed
        said = "the code that is installed here" if same else "OTHER CODE than is installed here"
        typer.echo(f"{app_folder.name}: {said}")


def deploy(
    experiment: str,
    superlink: Annotated[
        str, typer.Option(metavar="NAME", help="A connection of FLWR_HOME/config.toml.")
    ] = "",
    set: Settings = None,
    run_dir: RunDir = None,
    resume: Resume = False,
) -> None:
    """Run an experiment with real sites, on a SuperLink that is up (docs/deployment.md).

    Run it on the SuperLink's machine. The sites' own tasks take part; `sites.allow` names
    them. Prints the sha256 of what the sites get to run. Ctrl-C stops the run; the exit code
    is 0 only if it completed.

    Example:
    * `cold-flower deploy partners.toml --superlink partners --run-dir /srv/cold-flower/first`
    """
    from cold_flower.commands import running
    from cold_flower.commands.simulate import show
    from cold_flower.reporting.run import open_run
    from cold_flower.runtime import deploy as deployment
    from cold_flower.runtime import experiments

    config = running.configure(experiment, experiments.parse_settings(set or []), run_dir, resume)
    with exit_code_of_a_stop():
        deployment.deploy(config, superlink, typer.echo)
    run = open_run(config.run_dir)
    if run.scores:
        run.report()
    show(run)
