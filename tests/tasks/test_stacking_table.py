"""The table of block stacking from finished rows, and what each of its methods is."""

import json

import pytest

from diffplan.config import config_to_dict, with_overrides
from diffplan.errors import ConfigError, DataError
from diffplan.planning.loading import load_planner
from diffplan.tasks.registry import find_task
from diffplan.tasks.stacking.table import MODELS, ONLY, SETTINGS, StackingTable, make_config
from diffplan.tasks.stacking.table_page import METHOD_TITLES, PROTOCOLS, format_page
from diffplan.tasks.table import ROW_KEYS, TableRequest

TABLE = StackingTable()


def make_row(protocol, method, score, paper=None):
    is_trained = method not in ("script", "demonstrator")
    return {
        **dict.fromkeys(ROW_KEYS),
        "protocol": protocol,
        "task": protocol,
        "method": method,
        "score_mean": score,
        "score_ci95": [score - 1.0, score + 2.0],
        "metrics": {"paper_score": score if paper is None else paper, "script_score": 100.0},
        "plan_seconds_mean": 0.0125 if method == "planner" else None,
        "training_seconds": 300.0 if is_trained else None,
        "episodes": 100,
        "seeds": 3 if is_trained else 1,
        "scores": [[score] * 4],
    }


@pytest.fixture
def rows():
    return [
        make_row("unconditional", "script", 100.0),
        make_row("unconditional", "planner", 97.0, 98.5),
        make_row("conditional", "planner", 99.0),
        make_row("conditional", "bare", 30.0),
    ]


def test_the_table_is_a_part_of_the_task():
    table = find_task("stacking").table()
    assert table.tasks == PROTOCOLS == tuple(find_task("stacking").protocols)
    assert table.methods == tuple(METHOD_TITLES)
    assert set(MODELS) | {"script", "demonstrator", "bc", "iql", "cql"} == set(METHOD_TITLES)
    assert set(ONLY) <= set(METHOD_TITLES)


def test_each_ablation_differs_from_the_planner_in_one_thing():
    planner = make_config("planner")
    for method, changes in SETTINGS.items():
        if method != "bare":
            assert len(changes) <= 2, method
        assert with_overrides(planner.planning, changes) is not None
    without = make_config("no_symmetries")
    assert without.windows.symmetries == ()
    assert with_overrides(without, {"windows.symmetries": planner.windows.symmetries}) == planner
    joints = config_to_dict(make_config("joints"))
    joints["env"]["env_kwargs"]["space"] = "cup"
    changed = {key for key, value in config_to_dict(planner).items() if joints[key] != value}
    assert changed == {"windows", "planning"}  # the columns of the blocks and of the action
    steps = make_config("no_keyframes")
    assert steps.env.env_id.endswith("-Fine-v1")
    assert steps.windows.symmetries == planner.windows.symmetries


def test_the_page_has_every_number_in_its_cell(rows):
    lines = format_page(rows, machine="2 cores").splitlines()
    head = lines.index("| | unconditional | conditional |")
    assert lines[head + 2] == "| script | 100.0 [99.0, 102.0] (100.0) | — |"
    assert lines[head + 3] == "| planner: one candidate, no guide, no drafts | — | 30.0 [29.0, 32.0] (30.0) |"
    assert lines[head + 4] == "| planner | 97.0 [96.0, 99.0] (98.5) | 99.0 [98.0, 101.0] (99.0) |"
    assert "| Diffuser | 58.7 | 45.6 |" in lines
    assert "| CQL | 24.4 | 0 |" in lines
    assert "| planner | 5.0 | 12.5 | 12.5 |" in lines
    assert any("mean over 3 training seeds with 100 episodes" in line for line in lines)


def test_rows_that_are_there_stay_where_there_are_no_new_ones(rows, tmp_path):
    TABLE.write(rows, tmp_path, "first")
    page = TABLE.write([make_row("conditional", "bare", 10.0)], tmp_path, "second")
    kept = json.loads((tmp_path / "stacking.json").read_text())["rows"]
    assert [(row["task"], row["method"], row["score_mean"]) for row in kept] == [
        ("unconditional", "script", 100.0),
        ("unconditional", "planner", 97.0),
        ("conditional", "planner", 99.0),
        ("conditional", "bare", 10.0),
    ]
    assert page.exists()
    assert (tmp_path / "stacking.png").stat().st_size > 5_000
    (tmp_path / "stacking.json").write_text("[]")
    with pytest.raises(DataError, match="expected the rows of a table, got something else"):
        TABLE.write(rows, tmp_path, "third")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tasks": ("conditionl",)}, "--tasks: .*'conditionl'. Did you mean 'conditional'"),
        ({"methods": ("plan",)}, "--methods: .*Did you mean 'planner'"),
        ({"seeds": 0}, "--seeds: expected at least 1, got 0"),
    ],
)
def test_requests_are_checked_before_any_work(tmp_path, asked, message):
    with pytest.raises(ConfigError, match=message):
        TABLE.make(TableRequest(out=tmp_path / "out", **asked))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_small_table_is_made_once_and_packaged(tmp_path):
    """Every kind of model is really trained and evaluated; finished stages are not run again."""
    announced = []
    request = TableRequest(
        out=tmp_path / "work",
        command="this test",
        smoke=True,
        tasks=("unconditional",),
        methods=("script", "bc", "iql", "planner", "no_keyframes", "joints"),
    )
    rows = TABLE.make(request, announced.append)
    assert [row["method"] for row in rows] == list(request.methods)
    assert rows[0]["score_mean"] == 100.0
    assert all(row["metrics"]["script_score"] == 100.0 for row in rows)
    assert all(row["training_seconds"] > 0 for row in rows[1:])
    assert rows[3]["command"] == "this test --tasks unconditional --methods planner"
    num_stages = len(announced)
    assert TABLE.make(request, announced.append) == rows
    assert len(announced) == num_stages
    sizes = TABLE.package(request, tmp_path / "packages")
    assert sizes["stacking"] <= 5_000_000
    assert load_planner(tmp_path / "packages" / "stacking").settings == make_config("planner").planning
