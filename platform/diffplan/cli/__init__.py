"""The command line `diffplan`: a module for each command."""

import sys

try:
    from diffplan.cli.main import main, run_command
except KeyboardInterrupt:  # before there is a command that could answer it
    sys.stderr.write("interrupted\n")
    sys.exit(130)

__all__ = ["main", "run_command"]
