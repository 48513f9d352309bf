"""Make the paper's Table 1 as a cluster job: `diffplan table maze2d`, whose further arguments it takes."""

import sys

from diffplan.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("table", ["maze2d", *sys.argv[1:]]))
