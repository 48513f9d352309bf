"""Layout of a run directory.

```
<run>/config.json pipeline.json          the experiment; how the run was made
      dataset/ checkpoint/ tensorboard/  what was collected and trained
      search/best.json                   what the search found
      evaluation/<protocol>/summary.json
      report.html
      usage/                             of the report; other stages keep theirs in their outputs, the calibration in
                                         checkpoint/calibration/
```

Layout of a benchmark table:

```
<out>/table_begun.json                   the request of the table
      <task>/dataset/ checkpoint/ search/ policies/<policy>/ evaluation/<protocol>/<method>/
```
"""

CONFIG, PIPELINE = "config.json", "pipeline.json"
DATASET, CHECKPOINT, SEARCH, EVALUATION, TENSORBOARD, REPORT = (
    "dataset",
    "checkpoint",
    "search",
    "evaluation",
    "tensorboard",
    "report.html",
)
TABLE_BEGUN, POLICIES = "table_begun.json", "policies"
SUMMARY = "summary.json"
"""Of an evaluation; written last."""
BEST = "best.json"
"""Of a search; what it found, written last."""
PIN_NAME = "pinned.json"
"""Of a training run: names the snapshot that it trains on; checkpoints repeat it."""
RUN_NAME = "run"
"""Of a training run: folder of checkpoints to go on from and of Ray Train's own files."""
STEP_PREFIX = "step_"
"""Begins the names of these checkpoints; their step follows."""
CALIBRATION, CALIBRATION_USAGE = "calibration.json", "calibration"
"""Of a checkpoint: what `diffplan calibrate` measured, written last; and the directory with the records of its cost."""
