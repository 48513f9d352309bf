"""A training as a job of its own: `CONFIG` is the config as JSON, the arguments are the dataset and the output.

It ends as the command does.
"""

import os
import sys

from diffplan import cli
from diffplan.cluster.train.driver import train_on_cluster
from diffplan.config import Config, config_from_json


def train(arguments: list[str]) -> None:
    """Train."""
    train_on_cluster(config_from_json(Config, os.environ["CONFIG"]), *arguments, cpus_per_worker=1)


if __name__ == "__main__":
    cli._find_command = lambda name: train  # the same answers to signals and errors, of another config
    sys.exit(cli.run_command("train", sys.argv[1:]))
