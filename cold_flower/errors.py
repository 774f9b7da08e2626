"""The errors that a user can cause and mend.

Each message names the thing, what was expected, what came instead, and the way out.
"""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or what it is where it has none."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def sentence(error: Exception) -> str:
    """Return the first line of an error's text, as a sentence."""
    return first_line(error).rstrip(".") + "."


class ColdFlowerError(Exception):
    """An error that the command line reports as a message instead of a traceback."""


class ConfigError(ColdFlowerError):
    """A key of the configuration, or its value."""


class NoTaskError(ConfigError):
    """A node for which the run has no contributor."""


class TaskError(ColdFlowerError):
    """A suite, a task or its data."""


class ModelError(ColdFlowerError):
    """A base model that cannot be loaded or used."""


class TokensError(ModelError):
    """A model that reads with other tokens than the base.

    Args:
        text: what differs.
        more: whether embeddings by token could fuse it: it has the base's tokens, and others.
    """

    def __init__(self, text: str, *, more: bool = False) -> None:
        super().__init__(text)
        self.more = more


class RunError(ColdFlowerError):
    """A run directory or a run that went wrong."""


class SiteError(ColdFlowerError):
    """A site's own settings, its trainer, or what it would send."""


class OwnCodeError(SiteError):
    """A trainer or a ClientApp of a site's own raised an error."""


class LimitError(SiteError):
    """What a run asks of a site, and the site's own limits do not allow; it may say so."""
