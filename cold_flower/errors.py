"""The errors a user can cause and mend: each says what, what was expected, the way out."""


class ColdFlowerError(Exception):
    """Anything the command line reports in one line instead of a traceback."""


class ConfigError(ColdFlowerError):
    """A key or value of the configuration."""


class NoTaskError(ConfigError):
    """A node beyond the run's contributors."""


class TaskError(ColdFlowerError):
    """A suite, a task or its data."""


class ModelError(ColdFlowerError):
    """A base model that cannot be loaded or used."""


class RunError(ColdFlowerError):
    """A run directory or a run that went wrong."""


class SiteError(ColdFlowerError):
    """A site's own settings, its trainer, or what it would send."""
