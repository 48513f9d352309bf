"""Time the demo: the whole path on Maze2D-UMaze, scores and the seconds of each stage.

python benchmarks/demo.py [--preset maze2d-umaze] [--out docs/results/demo.json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="maze2d-umaze")
    parser.add_argument("--run", type=Path, help="directory of the run; a temporary one if not given")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "demo.json")
    arguments = parser.parse_args()
    run = arguments.run or Path(tempfile.mkdtemp()) / "run"
    since = time.perf_counter()
    command = [sys.executable, str(ROOT / "jobs" / "pipeline.py"), arguments.preset, "--out", str(run)]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - since
    result = {
        "command": f"python benchmarks/demo.py --preset {arguments.preset}",
        "machine": {"cpus": os.cpu_count()},
        "total_seconds": round(seconds, 1),
        "stages": json.loads((run / "pipeline.json").read_text())["stages"],
        "evaluation": {},
    }
    for path in sorted((run / "evaluation").glob("*/summary.json")):
        summary = json.loads(path.read_text())
        for place in ("checkpoint", "policy"):
            summary["config"].pop(place)
        result["evaluation"][path.parent.name] = summary
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{'stage':<20}{'seconds':>10}")
    for stage in [*result["stages"], {"name": "total", "seconds": result["total_seconds"]}]:
        print(f"{stage['name']:<20}{stage['seconds']:>10.1f}")
    print(f"\nwritten: {arguments.out}")


if __name__ == "__main__":
    main()
