"""The table of locomotion from finished rows, and the requests that it refuses."""

import dataclasses
import json

import pytest

from diffplan.errors import ConfigError, DataError
from diffplan.tasks.locomotion import table
from diffplan.tasks.locomotion.presets import BEHAVIORS, PRESETS, REPLAYS
from diffplan.tasks.locomotion.table import METHODS, LocomotionTable
from diffplan.tasks.locomotion.table_page import find_difference, format_page
from diffplan.tasks.registry import find_task
from diffplan.tasks.table import ROW_KEYS, TableRequest

TABLE = LocomotionTable()


def make_row(task, method, seeds):
    means = [sum(scores) / len(scores) for scores in seeds]
    mean = sum(means) / len(means)
    return {
        **dict.fromkeys(ROW_KEYS),
        "protocol": task.partition("-")[2],
        "task": task,
        "method": method,
        "score_mean": mean,
        "score_ci95": [mean - 1.0, mean + 2.0],
        "plan_seconds_mean": 0.0015 if method.startswith("planner") else None,
        "training_seconds": 120.0,
        "episodes": len(seeds[0]),
        "seeds": len(seeds),
        "scores": seeds,
    }


@pytest.fixture
def rows():
    return [
        make_row("hopper-medium", "bc", [[40.0, 42.0], [38.0, 40.0]]),
        make_row("hopper-medium", "planner", [[60.0, 60.0], [70.0, 70.0]]),
        make_row("hopper-medium", "planner_plain", [[50.0, 50.0], [50.0, 50.0]]),
        make_row("walker2d-medium", "bc", [[50.0, 50.0], [50.0, 50.0]]),
    ]


def test_the_table_is_a_part_of_the_task():
    make = find_task("locomotion").table
    assert make is not None
    assert make().methods == METHODS
    assert set(make().tasks) == {*BEHAVIORS, *REPLAYS}
    assert len(make().tasks) == 9
    assert set(make().tasks) <= set(PRESETS)


def test_the_page_has_every_number_in_its_cell(rows):
    lines = format_page(rows, machine="2 cores").splitlines()
    head = lines.index("| | cloned policy (BC) | planner without value | planner |")
    assert lines[head + 2] == "| hopper-medium | 40.0 [39.0, 42.0] | 50.0 [49.0, 52.0] | 65.0 [64.0, 67.0] |"
    assert lines[head + 3] == "| walker2d-medium | 50.0 [49.0, 52.0] | — | — |"
    assert lines[head + 4] == "| mean of 2 | 45.0 | — | — |"
    assert any("mean over 2 training seeds with 2 episodes each" in line for line in lines)
    _, (low, high) = find_difference(rows[1], rows[0])
    assert 19.0 <= low < 25.0 < high <= 32.0
    assert f"| hopper-medium | +25.0 [{low:+.1f}, {high:+.1f}] | +15.0 [+10.0, +20.0] |" in lines
    assert "| walker2d-medium | — | — |" in lines
    assert "| planner | 2.0 | 1.5 |" in lines
    assert any(line.startswith("| hopper-medium | Diffuser 74.3, BC 52.9") for line in lines)


def test_a_difference_is_drawn_from_independent_seeds_and_episodes():
    first = make_row("hopper-medium", "planner", [[60.0, 60.0], [70.0, 70.0]])
    assert find_difference(first, make_row("hopper-medium", "bc", [[50.0], [50.0]])) == (15.0, [10.0, 20.0])
    mean, (low, high) = find_difference(first, first)  # the same seeds, but not the same draws
    assert (mean, low, high) == (0.0, -10.0, 10.0)


def test_rows_that_are_there_stay_where_there_are_no_new_ones(rows, tmp_path):
    TABLE.write(rows[:2], tmp_path, "first")
    page = TABLE.write([*rows[2:], make_row("hopper-medium", "bc", [[1.0, 1.0], [1.0, 1.0]])], tmp_path, "second")
    record = json.loads((tmp_path / "locomotion.json").read_text())
    found = {(row["task"], row["method"]): row["score_mean"] for row in record["rows"]}
    assert found == {
        ("hopper-medium", "bc"): 1.0,
        ("hopper-medium", "planner"): 65.0,
        ("hopper-medium", "planner_plain"): 50.0,
        ("walker2d-medium", "bc"): 50.0,
    }
    assert "65.0 [64.0, 67.0]" in page.read_text()
    assert (tmp_path / "locomotion.png").stat().st_size > 10_000
    (tmp_path / "locomotion.json").write_text('{"rows": [3]}')
    with pytest.raises(DataError, match="expected the rows of a table"):
        TABLE.write(rows, tmp_path, "third")


def test_unknown_names_and_sizes_are_refused(tmp_path):
    for arguments, message in [
        ({"methods": ("plannr",)}, "Did you mean 'planner'"),
        ({"tasks": ("hoper-medium",)}, "Did you mean 'hopper-medium'"),
        ({"seeds": 0}, "--seeds: expected at least 1, got 0"),
        ({"episodes": 0}, "--episodes: expected at least 1, got 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            TABLE.make(TableRequest(out=tmp_path, **arguments))
    assert list(tmp_path.iterdir()) == []


def test_replay_data_are_every_step_of_a_training(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "SMOKE", dataclasses.replace(table.SMOKE, replay_steps=800))
    request = TableRequest(out=tmp_path, command="this test", smoke=True, tasks=("hopper-medium-replay",))
    announced = []
    for _ in range(2):  # the second finds what the first left
        run = table._Run(table.Plan.make(request), "hopper-medium-replay", 0, announced.append)
        row = run.describe_behavior()
        assert row["settings"] == {"behavior": "replay buffer of soft actor-critic", "num_steps": 800}
        assert -1 < row["score_mean"] < 5  # the first steps are at random
    assert announced == ["hopper-medium-replay: train a policy by soft actor-critic"]
