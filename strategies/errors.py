"""The errors of this folder.

::

    StrategyError
    ├── FusionError          a rule, an option, or input it cannot fuse
    ├── Refused              a contribution that may not be fused
    └── RunStopped           the run cannot go on; what had arrived is kept
        ├── QuorumError      fewer good contributions than the quorum asks for
        └── DeadActorError   a simulation worker died
"""


class StrategyError(Exception):
    """Anything that goes wrong here in a way a user can understand."""


class FusionError(StrategyError):
    """A rule that is not there, an option it does not have, or input it cannot fuse."""


class Refused(StrategyError):
    """A contribution that may not be fused; the text is the reason."""


class RunStopped(StrategyError):
    """The run cannot go on; what had arrived is kept."""


class QuorumError(RunStopped):
    """Fewer good contributions than the quorum asks for."""


class DeadActorError(RunStopped):
    """A simulation worker died; Flower would let it fail every later message too."""
