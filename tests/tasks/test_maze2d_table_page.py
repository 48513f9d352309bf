"""The paper's Table 1 from evaluations."""

import json

import pytest
from scipy import stats

from diffplan.cli.parsing import parse
from diffplan.cli.table import COMMAND, describe_request
from diffplan.errors import ConfigError
from diffplan.tasks.maze2d.table import METHODS, Maze2DTable, Plan, begin
from diffplan.tasks.maze2d.table_page import METHOD_TITLES, format_page
from diffplan.tasks.registry import find_task
from diffplan.tasks.table import ROW_KEYS, TableRequest
from diffplan.tasks.table_rows import average_rows, make_row

TABLE = Maze2DTable()


def summary(protocol="maze2d", score=150.04, plan_seconds=0.0123, **config):
    return {
        "protocol": protocol,
        "score_mean": score,
        "score_stderr": 1.0,
        "score_ci95": [score - 2, score + 2],
        "success_rate": 0.985,
        "metrics": {"path_efficiency": 0.875, "collision_steps": 12.4, "time_to_goal_steps": None},
        "plan_seconds_mean": plan_seconds,
        "wall_seconds": 3.0,
        "episodes": 100,
        "config": {"checkpoint": "/somewhere/model", "policy": "/somewhere/model", "seed": 4, **config},
    }


def row(found, method, seconds, maze="umaze"):
    return make_row(found, task=maze, method=method, training_seconds=seconds, command="diffplan table maze2d")


@pytest.fixture
def rows():
    return [
        row(summary(), "diffuser", 171.0),
        row(summary("multi2d", 160.0), "diffuser", None),
        row(summary(score=36.2, plan_seconds=None, training={"dataset": {"uri": "/somewhere/data"}}), "iql", 600.0),
        row(summary(score=40.0), "iql", 300.0, maze="medium"),
        {**dict.fromkeys(ROW_KEYS), "protocol": "maze2d", "task": "umaze", "method": "limit", "score_mean": 169.3},
    ]


def test_a_row_has_what_was_promised_and_names_no_place_on_this_machine(rows):
    assert all(tuple(each) == ROW_KEYS for each in rows[:4])
    assert rows[0]["settings"] == {"seed": 4}
    assert (rows[0]["training_seconds"], rows[0]["seeds"]) == (171.0, 1)
    assert rows[2]["metrics"]["time_to_goal_steps"] is None  # no meaning, but there
    assert "/somewhere" not in json.dumps(rows)


def test_rows_of_several_seeds_are_their_mean():
    seeds = [
        row(summary(score=score), "diffuser", seconds) for score, seconds in ((150, 100.0), (153, 110.0), (156, None))
    ]
    made = average_rows(seeds)
    assert tuple(made) == ROW_KEYS
    assert (made["score_mean"], made["seeds"], made["episodes"]) == (153, 3, 100)
    assert made["score_stderr"] == pytest.approx(3 / 3**0.5)
    low, high = stats.t.interval(0.95, 2, 153, 3 / 3**0.5)
    assert made["score_ci95"] == pytest.approx([low, high])
    assert made["training_seconds"] is None  # of one of them it is not known
    assert made["metrics"] == {"path_efficiency": 0.875, "collision_steps": 12.4, "time_to_goal_steps": None}
    assert average_rows(seeds[:1]) == seeds[0]


def test_a_row_names_the_command_that_makes_it_anywhere():
    words = ["maze2d", "--out", "/a/b", "--models", "/c", "--seeds", "3", "--smoke", "--methods", "iql", "--seed", "83"]
    assert describe_request(parse(COMMAND, "table", words).arguments) == (
        "diffplan table maze2d --smoke --seeds 3 --seed 83"
    )


def test_the_table_is_a_part_of_the_task():
    make = find_task("maze2d").table
    assert make is not None
    assert (make().tasks, make().methods) == (("umaze", "medium", "large"), METHODS)


def test_the_page_has_every_number_in_its_cell(rows):
    lines = format_page(rows, command="python x.py", machine="2 cores", notes=["A note."]).splitlines()
    assert "`python x.py`, 2 cores." in lines
    single, multi = lines.index("## Maze2D"), lines.index("## Multi2D")
    assert lines[single + 2] == "| | UMaze | Medium |"
    assert "| **diffplan** | 150.0 [148.0, 152.0], 98 % | — |" in lines[single:multi]
    assert "| IQL | 36.2 [34.2, 38.2], 98 % | 40.0 [38.0, 42.0], 98 % |" in lines[single:multi]
    assert "| physical limit | 169.3 | — |" in lines[single:multi]
    assert "| published: IQL (Janner et al. 2022) | 47.4 | 34.9 |" in lines[single:multi]
    assert "| published: best | 144.6, SSD | 154.8, HorizonFlow |" in lines[single:multi]
    assert "| **diffplan** | 160.0 [158.0, 162.0], 98 % | — |" in lines[multi:]
    assert "| diffplan | Maze2D | 2.9 | 12.3 | 0.88 | 12 |" in lines
    assert "| IQL | Maze2D | 10.0 / 5.0 | — / 12.3 | 0.88 / 0.88 | 12 / 12 |" in lines
    assert lines[-1] == "* A note."


def test_every_file_is_written(rows, tmp_path):
    page = TABLE.write(rows, tmp_path / "results", "diffplan table maze2d --seed 1")
    record = json.loads((tmp_path / "results" / "table1.json").read_text())
    assert record["command"] == "diffplan table maze2d --seed 1"
    assert record["rows"] == rows
    assert (tmp_path / "results" / "table1.png").stat().st_size > 10_000
    assert page == tmp_path / "results" / "table1.md"
    assert "150.0 [148.0, 152.0]" in page.read_text()


def test_methods_are_those_that_can_be_run_and_unknown_ones_are_refused(tmp_path):
    assert [*METHODS, "limit"] == list(METHOD_TITLES)
    for arguments, message in [
        ({"methods": ("mppj",)}, "Did you mean 'mppi'"),
        ({"tasks": ("lrage",)}, "Did you mean 'large'"),
        ({"seeds": 0}, "--seeds: expected at least 1, got 0"),
        ({"episodes": 0}, "--episodes: expected at least 1, got 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            TABLE.make(TableRequest(out=tmp_path, **arguments))
    assert list(tmp_path.iterdir()) == []


def test_results_of_another_seed_or_size_are_not_mixed_in(tmp_path):
    begin(Plan.make(TableRequest(out=tmp_path)))
    begin(Plan.make(TableRequest(out=tmp_path, tasks=("umaze",), methods=("random",), seeds=3)))  # of the same table
    for other, changed in [({"seed": 1}, "another seed;"), ({"episodes": 7}, "another episodes;")]:
        with pytest.raises(ConfigError, match=changed):
            TABLE.make(TableRequest(out=tmp_path, **other))
