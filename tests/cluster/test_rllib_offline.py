"""An export is read and trained on by RLlib itself, with the code of docs/data_readers.md."""

import gc
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from diffplan.data.exchange.parquet import export_parquet
from diffplan.data.format.dataset import open_dataset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PAGE = Path(__file__).parents[2] / "docs" / "data_readers.md"


def test_behavior_cloning_trains_on_an_export(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.rllib.core.columns import Columns
    from ray.rllib.offline.offline_prelearner import SCHEMA

    dataset = open_dataset(tiny_dataset)
    (tmp_path / "exports").mkdir()
    out = export_parquet(dataset, tmp_path / "exports" / "umaze-rllib", layout="rllib")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text().split("\n## RLlib\n")[1], re.DOTALL | re.MULTILINE)
    variables: dict[str, Any] = {}
    exec(code, variables)
    try:
        learned = variables["result"]["learners"]["default_policy"]
        assert learned["num_module_steps_trained"] == 5 * 256
        assert np.isfinite(learned["policy_loss"])
        batch = variables["algorithm"].offline_data.data.take_batch(64)  # what the learner gets
    finally:
        variables["algorithm"].stop()
        variables.clear()
        gc.collect()  # an iterator of Ray Data that outlives the cluster complains at exit

    steps = pq.read_table(out / "steps")
    assert set(steps.column_names) <= set(SCHEMA)  # RLlib takes any other column for an output of the module that acted
    written = zip(
        *(np.stack(steps.column(name).to_pandas().to_list()) for name in ("obs", "new_obs", "actions")), strict=True
    )
    known = {(obs.tobytes(), new.tobytes(), action.tobytes()) for obs, new, action in written}
    rows = [batch[f"default_policy/{name}"] for name in (Columns.OBS, Columns.NEXT_OBS, Columns.ACTIONS)]
    assert len(rows[0]) == 64
    assert all((o.tobytes(), n.tobytes(), a.tobytes()) in known for o, n, a in zip(*rows, strict=True))
