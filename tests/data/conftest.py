from pathlib import Path

import pytest
from made_up_episodes import write_dataset


@pytest.fixture
def dataset_root(tmp_path: Path) -> Path:
    """A dataset of two units with two episodes each, of 5, 7, 4 and 6 steps."""
    write_dataset(tmp_path / "dataset", [[5, 7], [4, 6]])
    return tmp_path / "dataset"
