"""What docs/tuning.md says of studies is what there is, and its commands and examples are accepted."""

import json
import re
import shlex
from pathlib import Path

import optuna
import pytest

from diffplan.cli.parsing import parse
from diffplan.cli.tune import COMMAND
from diffplan.config import Config, PlanningConfig
from diffplan.config.study import Study
from diffplan.tasks.maze2d.studies import PLAN_COST
from diffplan.tasks.registry import find_task, get_preset
from diffplan.tuning.journal import STUDY_NAME
from diffplan.tuning.metrics import LESS_IS_BETTER
from diffplan.tuning.space import make_space
from diffplan.tuning.studies import find_study, list_studies

ROOT = Path(__file__).parents[2]
TUNING = (ROOT / "docs" / "tuning.md").read_text()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONFIG: Config = get_preset("maze2d-umaze")
TASK = find_task("maze2d")
STUDIES = list_studies(TASK)


def find_blocks(text: str, language: str) -> list[str]:
    return [match[2] for match in BLOCK.finditer(text) if match[1] == language]


def read_table(first_header: str) -> list[list[str]]:
    _, _, rest = TUNING.partition(f"| {first_header} |")
    rows = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.split(" | ")] for row in (row.strip("| ") for row in rows)]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_table_of_studies_is_that_of_the_code() -> None:
    rows = {names_in(row[0])[0]: row for row in read_table("study")}
    assert set(rows) == set(STUDIES)
    for name, study in STUDIES.items():
        _, kind, objectives, trials, varied = rows[name]
        assert names_in(kind) == [study.kind]
        assert tuple(names_in(objectives)) == study.objectives
        assert trials == ("those of the preset" if study.num_trials is None else str(study.num_trials))
        sections = set(PlanningConfig.__dataclass_fields__)
        names = set(names_in(varied)) - {"planner"}
        fields = {f"planning.{name}" if name.partition(".")[0] in sections else name for name in names}
        if "planner" in names_in(varied):
            fields |= set(STUDIES["planner"].vary)
        assert fields == set(study.vary), name


def test_the_other_tables_name_what_there_is() -> None:
    assert {names_in(row[0])[0] for row in read_table("metric")} == set(LESS_IS_BETTER)
    fields = {names_in(row[0])[0]: row[1] for row in read_table("field")}
    assert set(fields) == set(Study.__dataclass_fields__)
    assert json.loads(names_in(fields["objectives"])[0]) == list(Study.__dataclass_fields__["objectives"].default)
    for name in ("kind", "cost_weight", "training_share"):
        assert fields[name].strip("`") in (str(Study.__dataclass_fields__[name].default), "0"), name
    assert f"{PLAN_COST:g} if not given" in TUNING
    for row in read_table("values"):
        values = json.loads(names_in(row[0])[0])
        name = "planning.controller.position_gain" if "low" in values else "planning.replanning.interval"
        if "shares" in values:
            name = "network.dim"
        make_space(find_study_of({"kind": "training", "vary": {name: values}}), CONFIG)


def find_study_of(values: dict) -> Study:
    from diffplan.config import config_from_dict

    return config_from_dict(Study, values)


def test_studies_in_json_are_accepted(tmp_path: Path) -> None:
    (block,) = find_blocks(TUNING, "json")
    (tmp_path / "own.json").write_text(block)
    study = find_study(tmp_path / "own.json", TASK)
    assert set(make_space(study, CONFIG)) == set(study.vary)


@pytest.mark.parametrize("document", ["README.md", "docs/guide.md", "docs/tuning.md"])
def test_tune_commands_are_accepted(document: str) -> None:
    lines = "\n".join(find_blocks((ROOT / document).read_text(), "")).splitlines()
    commands = [shlex.split(line)[2:] for line in lines if line.startswith("diffplan tune ")]
    assert commands or document == "docs/guide.md"
    for command in commands:
        if command == ["--list"]:
            continue
        parsed = parse(COMMAND, "tune", command).arguments
        if not parsed.study.endswith(".json"):
            assert (find_study(parsed.study, TASK).kind == "training") == (parsed.preset is not None)


def test_python_examples_run(tmp_path: Path) -> None:
    namespace: dict = {}
    for block in find_blocks(TUNING, "python"):
        exec(compile(block, "docs/tuning.md", "exec"), namespace)
    make_space(namespace["gains"], CONFIG)
    path = str(tmp_path / "study.journal")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
    optuna.create_study(study_name=STUDY_NAME, storage=storage)
    assert namespace["open_study"](path).trials == []
