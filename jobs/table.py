"""Make the benchmark table of a family as a cluster job; takes the arguments of `diffplan table`."""

import sys

from diffplan.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("table", sys.argv[1:]))
