"""Evaluate a checkpoint as a cluster job; takes the arguments of `diffplan evaluate`."""

import sys

from diffplan.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("evaluate", sys.argv[1:]))
