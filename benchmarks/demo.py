"""Time the demo: the whole path on Maze2D-UMaze.

Scores, and the seconds of each stage.

    python benchmarks/demo.py
"""

import json
import time
from pathlib import Path
from typing import Any

from harness import make_parser, make_scratch, parse_arguments, run_diffplan, write_results


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--preset", default="maze2d-umaze")
    parser.add_argument("--run", type=Path, help="directory of the run; a temporary one if not given")
    parser.add_argument("--episodes", type=int, default=100, help="of each protocol")
    arguments = parse_arguments(parser, {"preset": "maze2d-umaze-smoke", "episodes": 4})
    with make_scratch() as directory:
        result = time_demo(arguments.preset, arguments.run or Path(directory) / "run", arguments.episodes)
    print(f"\n{'stage':<20}{'seconds':>10}")
    for stage in [*result["stages"], {"name": "total", "seconds": result["total_seconds"]}]:
        print(f"{stage['name']:<20}{stage['seconds']:>10.1f}")
    write_results(arguments, result)


def time_demo(preset: str, run: Path, episodes: int) -> dict[str, Any]:
    """Run all stages of a preset; seconds of each, and summaries of the evaluations."""
    since = time.perf_counter()
    run_diffplan("pipeline", [preset, "--out", run, "--episodes", str(episodes)])
    seconds = time.perf_counter() - since
    result: dict[str, Any] = {
        "total_seconds": round(seconds, 1),
        "stages": json.loads((run / "pipeline.json").read_text())["stages"],
        "evaluation": {},
    }
    for path in sorted((run / "evaluation").glob("*/summary.json")):
        summary = json.loads(path.read_text())
        for place in ("checkpoint", "policy"):
            summary["config"].pop(place)
        result["evaluation"][path.parent.name] = summary
    return result


if __name__ == "__main__":
    main()
