"""How the base model reads the contributors' texts: what of them it never sees is said."""

from collections.abc import Callable, Iterable

from cold_flower.data.remarks import MUCH
from cold_flower.repository.journal import READ
from strategies.participants import Member


def say_shares(members: Iterable[Member], length: int, say: Callable[..., object]) -> None:
    """Say which share of the training texts the base model does not get to see.

    Args:
        members: who has just come.
        length: ``finetune.max-length``.
        say: `Journal.say`.
    """
    members = list(members)
    if not members:
        return
    shares = {member.name: {"unknown": member.unknown, "cut": member.cut} for member in members}
    unknown, cut = (max(members, key=lambda member: getattr(member, k)) for k in ("unknown", "cut"))
    say(
        f"texts as the base model reads them: at most {unknown.unknown:.1%} unknown tokens "
        f"({unknown.name}), at most {cut.cut:.1%} of a task's texts cut ({cut.name}), at {length} "
        "tokens or the model's own limit",
        **{READ: shares},
    )
    if lost := _above(members, "unknown"):
        say(f"WARNING: tokens that the base model's tokenizer does not know: {lost}")
    if lost := _above(members, "cut"):
        say(
            f"WARNING: texts longer than finetune.max-length = {length} tokens, or the model's own "
            f"limit, cut: {lost}"
        )


def _above(members: Iterable[Member], share: str) -> str:
    found = {member.name: getattr(member, share) for member in members}
    return ", ".join(f"{name} {value:.0%}" for name, value in found.items() if value > MUCH)
