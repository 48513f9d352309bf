"""Make the paper's Table 1 as one cluster job; takes the arguments of `diffplan table1`."""

import sys

from diffplan.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("table1", sys.argv[1:]))
