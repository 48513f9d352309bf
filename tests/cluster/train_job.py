"""A training as a job of its own: `CONFIG` is the config as JSON, the arguments are the dataset and the output.

It ends as the command does.
"""

import importlib
import os
import sys

from diffplan.cli.command import Passthrough
from diffplan.cluster.train.driver import train_on_cluster
from diffplan.config import Config, config_from_json


def train(arguments: list[str]) -> int:
    """Train."""
    train_on_cluster(config_from_json(Config, os.environ["CONFIG"]), *arguments, cpus_per_worker=1)
    return 0


if __name__ == "__main__":
    cli = importlib.import_module("diffplan.cli.main")  # `diffplan.cli.main` is the function
    # The same answers to signals and errors, of another config.
    cli.find_command = lambda name: Passthrough("", train)
    sys.exit(cli.run_command("train", sys.argv[1:]))
