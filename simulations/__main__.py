"""Run a shipped experiment: ``python -m simulations demo`` is ``cold-flower simulate demo``."""

import sys

from cold_flower.commands.cli import main

sys.argv.insert(1, "simulate")
main()
