"""Collect a dataset as a cluster job; takes the arguments of `diffplan collect`."""

import sys

from diffplan.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("collect", sys.argv[1:]))
