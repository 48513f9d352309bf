"""The command line `diffplan`: a module for each command."""

from diffplan.cli.main import main, run_command

__all__ = ["main", "run_command"]
