"""`cold-flower fuse`: fuse models that lie on a disk, without a run."""

from pathlib import Path
from typing import Annotated

import typer

from cold_flower.commands.options import exit_code_of_a_stop


def fuse(
    rule: str,
    model: list[str],
    base: Annotated[str, typer.Option(help="What the models were finetuned from.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the rule; may be repeated."),
    ] = None,
    statistics: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Of each model's data, in their order, for fisher and regmean "
            "(cold-flower statistics); may be repeated.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="For rules that draw, such as dare.")] = 0,
    vocabulary: Annotated[
        str,
        typer.Option(help="Of the fused model: base, or union where models added tokens."),
    ] = "base",
    allow_tokenizer: Annotated[
        bool,
        typer.Option("--allow-tokenizer", help="Models may have other tokenizers than the base."),
    ] = False,
) -> None:
    """Fuse finetuned models that lie on a disk: transformers folders, or models of the hub.

    RULE is one of `cold-flower rules`, each MODEL a finetuned copy of the base. Their bodies
    are fused; heads, tokenizer and configuration are the base's. Nothing is known of the models'
    examples: each counts as one; weighted_average takes weights by name.

    Examples:
    * `cold-flower fuse average --base roberta-base --out fused runs/a runs/b runs/c`

    * `cold-flower fuse ties --option density=0.3 --base ./base --out ./fused ./a ./b`
    """
    from cold_flower.commands import api, offline

    options = offline.parse_options(option or [])
    with exit_code_of_a_stop():
        folder = api.fuse(
            rule,
            base=base,
            models=model,
            out=out,
            options=options,
            statistics=statistics or [],
            seed=seed,
            vocabulary=vocabulary,
            allow_tokenizer=allow_tokenizer,
            say=typer.echo,
            progress=typer.echo,
        )
    typer.echo(f"{len(model)} models fused by {rule}: {folder}")
