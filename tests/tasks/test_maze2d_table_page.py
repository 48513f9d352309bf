"""The paper's Table 1 from evaluations."""

import json

import pytest

from diffplan.errors import ConfigError
from diffplan.tasks.maze2d.table import METHODS, Table1, Table1Size, _begin, make_table1, write_table1
from diffplan.tasks.maze2d.table_page import METHOD_TITLES, format_page, make_row

CONTRACT = {
    "protocol",
    "maze",
    "method",
    "score_mean",
    "score_stderr",
    "score_ci95",
    "success_rate",
    "time_to_goal_steps_mean",
    "plan_seconds_mean",
    "episodes",
    "settings",
}


def summary(protocol="maze2d", score=150.04, plan_seconds=0.0123, **config):
    return {
        "protocol": protocol,
        "score_mean": score,
        "score_stderr": 1.0,
        "score_ci95": [score - 2, score + 2],
        "score_iqm": score,
        "success_rate": 0.985,
        "time_to_goal_steps_mean": None,
        "path_efficiency_mean": 0.875,
        "collision_steps_mean": 12.4,
        "plan_seconds_mean": plan_seconds,
        "wall_seconds": 3.0,
        "episodes": 100,
        "config": {"checkpoint": "/somewhere/model", "policy": "/somewhere/model", "seed": 4, **config},
    }


@pytest.fixture
def rows():
    return [
        make_row(summary(), maze="umaze", method="diffuser", training={"num_steps": 3000, "seconds": 171.0}),
        make_row(summary("multi2d", 160.0), maze="umaze", method="diffuser", training={"seconds": None}),
        make_row(
            summary(score=36.2, plan_seconds=None, training={"dataset": {"uri": "/somewhere/data"}}),
            maze="umaze",
            method="iql",
            training={"seconds": 600.0, "dataset": {"uri": "/somewhere/data", "num_steps": 5}},
        ),
        make_row(summary(score=40.0), maze="medium", method="iql", training={"seconds": 300.0}),
        {"protocol": "maze2d", "maze": "umaze", "method": "limit", "score_mean": 169.3},
    ]


def test_a_row_has_what_was_promised_and_names_no_place_on_this_machine(rows):
    assert set(rows[0]) >= CONTRACT
    assert rows[0]["settings"] == {"seed": 4}
    assert rows[2]["training"] == {"seconds": 600.0, "dataset": {"num_steps": 5}}
    assert "/somewhere" not in json.dumps(rows)


def test_the_page_has_every_number_in_its_cell(rows):
    lines = format_page(rows, command="python x.py", machine="2 cores", notes=["A note."]).splitlines()
    assert "`python x.py`, 2 cores." in lines
    single, multi = lines.index("## Maze2D"), lines.index("## Multi2D")
    assert lines[single + 2] == "| | UMaze | Medium |"
    assert "| **diffplan** | 150.0 [148.0, 152.0], 98 % | — |" in lines[single:multi]
    assert "| IQL | 36.2 [34.2, 38.2], 98 % | 40.0 [38.0, 42.0], 98 % |" in lines[single:multi]
    assert "| physical limit | 169.3 | — |" in lines[single:multi]
    assert "| published: IQL (Janner et al. 2022) | 47.4 | 34.9 |" in lines[single:multi]
    assert "| published: best | 142.9, CDiffuser | 149.4, Diffusion Forcing |" in lines[single:multi]
    assert "| **diffplan** | 160.0 [158.0, 162.0], 98 % | — |" in lines[multi:]
    assert "| diffplan | Maze2D | 2.9 | 12.3 | 0.88 | 12 |" in lines
    assert "| IQL | Maze2D | 10.0 / 5.0 | — / 12.3 | 0.88 / 0.88 | 12 / 12 |" in lines
    assert lines[-1] == "* A note."


def test_every_file_is_written(rows, tmp_path):
    write_table1(rows, tmp_path / "results", "python jobs/table1.py --seed 1")
    record = json.loads((tmp_path / "results" / "table1.json").read_text())
    assert record["command"] == "python jobs/table1.py --seed 1"
    assert record["rows"] == rows
    assert (tmp_path / "results" / "table1.png").stat().st_size > 10_000
    assert "150.0 [148.0, 152.0]" in (tmp_path / "results" / "table1.md").read_text()


def test_methods_are_those_that_can_be_run_and_unknown_ones_are_refused(tmp_path):
    assert [*METHODS, "limit"] == list(METHOD_TITLES)
    for arguments, message in [
        ({"methods": ("mppj",)}, "Did you mean 'mppi'"),
        ({"mazes": ("lrage",)}, "Did you mean 'large'"),
        ({"mazes": ()}, "expected at least one"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Table1(out=tmp_path, **arguments)


def test_results_of_another_seed_or_size_are_not_mixed_in(tmp_path):
    _begin(Table1(out=tmp_path))
    _begin(Table1(out=tmp_path, mazes=("umaze",), methods=("random",)))  # a part of the same
    for other, changed in [
        (Table1(out=tmp_path, seed=1), "another seed;"),
        (Table1(out=tmp_path, size=Table1Size(episodes=7)), "another episodes;"),
    ]:
        with pytest.raises(ConfigError, match=changed):
            make_table1(other)
