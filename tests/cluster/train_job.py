"""A training as a job of its own: `CONFIG` is the config as JSON, the arguments are the dataset and the output."""

import os
import sys

from diffplan.cluster.train import train_on_cluster
from diffplan.config import Config, config_from_json

if __name__ == "__main__":
    train_on_cluster(config_from_json(Config, os.environ["CONFIG"]), *sys.argv[1:3], cpus_per_worker=1)
