"""Make the table of block stacking as a cluster job: `diffplan table stacking`, whose further arguments it takes."""

import sys

from diffplan.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("table", ["stacking", *sys.argv[1:]]))
