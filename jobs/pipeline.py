"""Run every stage as one cluster job; takes the arguments of `diffplan pipeline`."""

import sys

from diffplan.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("pipeline", sys.argv[1:]))
