"""Train a diffuser as a cluster job; takes the arguments of `diffplan train`."""

import sys

from diffplan.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("train", sys.argv[1:]))
