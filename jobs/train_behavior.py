"""Train a policy that collects data as a cluster job: `diffplan behavior train`, whose arguments it takes."""

import sys

from diffplan.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("behavior", ["train", *sys.argv[1:]]))
