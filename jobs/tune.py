"""Search planner settings as a cluster job; takes the arguments of `diffplan tune`."""

import sys

from diffplan.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("tune", sys.argv[1:]))
