"""Make the table of locomotion as a cluster job: `diffplan table locomotion`, whose further arguments it takes."""

import sys

from diffplan.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("table", ["locomotion", *sys.argv[1:]]))
