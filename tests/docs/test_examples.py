"""Examples in the documents do what they say, and the tables of planning.md name what there is, with its defaults."""

import dataclasses
import doctest
import inspect
import io
import re
import shlex
import typing
from pathlib import Path

import pytest

from diffplan.cli import main
from diffplan.config import Config, PlanningConfig, SamplingConfig
from diffplan.config.kinds import list_kinds, list_unions
from diffplan.diffusion import guide_expressions, guides
from diffplan.diffusion.guide_expressions import MAX_DEPTH, MAX_EXPONENT, MAX_INDEX, MAX_LENGTH
from diffplan.diffusion.plan_expressions import ELEMENTWISE, FIELDS, PAIRWISE, REDUCTIONS
from diffplan.diffusion.samplers import SAMPLERS

ROOT = Path(__file__).parents[2]
PLANNING = (ROOT / "docs" / "planning.md").read_text()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(workspace, monkeypatch):
    """In the directory where the documents' paths lead to a dataset and a checkpoint."""
    monkeypatch.chdir(workspace)
    return workspace


def find_blocks(document, language):
    return [match[2] for match in BLOCK.finditer((ROOT / document).read_text()) if match[1] == language]


def read_table(first_header):
    """Rows of the table of planning.md whose first column has a header, as cells."""
    _, _, rest = PLANNING.partition(f"| {first_header} |")
    assert rest, f"no table with {first_header}"
    rows = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def names_in(cell):
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def get_choices(section, field):
    """Choices of a field of a config, none where it is free."""
    hint = typing.get_type_hints(section)[field]
    return set(typing.get_args(hint)) if typing.get_origin(hint) is typing.Literal else set()


def list_settings():
    """Default and choices of every setting of planning, by dotted names; where kinds differ, of the default kind."""
    found, unions = {}, list_unions(PlanningConfig)
    for section in dataclasses.fields(PlanningConfig):
        members = unions.get(section.name, (type(section.default),))
        for member in sorted(members, key=lambda member: not isinstance(section.default, member)):
            for field in dataclasses.fields(member):
                default = [*field.default] if isinstance(field.default, tuple) else [str(field.default)]
                choices = list_kinds(members) if field.name == "kind" else get_choices(member, field.name)
                found.setdefault(f"{section.name}.{field.name}", (default, set(choices)))
    return found


@pytest.mark.usefixtures("here")
def test_examples_of_planning_do_what_they_say():
    # Fences become empty lines, which end what an example is expected to print.
    text = re.sub(r"^```.*$", "", PLANNING, flags=re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest(text, {}, "planning.md", "docs/planning.md", 0)
    assert len(examples.examples) > 40
    report = io.StringIO()
    result = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(examples, out=report.write)
    assert result.failed == 0, report.getvalue()


EXECUTED = ["README.md", "docs/guide.md", "docs/data.md", "docs/training.md", "docs/evaluation.md", "docs/baselines.md"]
EXECUTED_ELSEWHERE = ["docs/planning.md", "docs/tuning.md", "docs/data_readers.md", "docs/tasks.md"]


def test_python_of_every_document_is_run_by_a_test():
    documents = [
        path for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if "```python" in path.read_text()
    ]
    assert {str(path.relative_to(ROOT)) for path in documents} == {*EXECUTED, *EXECUTED_ELSEWHERE}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("document", EXECUTED)
def test_python_of_other_documents_runs(document):
    blocks = find_blocks(document, "python")
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, document, "exec"), namespace)


@pytest.mark.parametrize("document", ["README.md", "docs/planning.md", "docs/training.md"])
def test_plan_commands_run(document, here, capsys):
    (here / "value.json").write_text('{"guidance": {"value": "models/umaze-value", "scale": 0.1}}')
    lines = "\n".join(find_blocks(document, "")).splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("diffplan plan ")]
    assert commands
    picture = here / "plan.png"
    picture.unlink(missing_ok=True)
    for command in commands:
        assert main(command) == 0, capsys.readouterr().err
    assert picture.exists() == any("--picture" in command for command in commands)
    assert not picture.exists() or picture.read_bytes().startswith(b"\x89PNG")


def test_every_setting_is_explained_with_its_default_and_choices():
    rows = [row for row in read_table("setting") if row[1]]
    documented = {names_in(setting)[0]: names_in(default) for setting, default, _ in rows}
    assert documented == {name: default for name, (default, _) in list_settings().items()}
    for row in rows:
        (name,) = names_in(row[0])
        if name != "sampling.sampler":
            assert list_settings()[name][1] <= {*names_in(row[1]), *names_in(row[2])}, name


def test_samplers_are_those_that_there_are():
    documented = {names_in(row[0])[0] for row in read_table("`sampler`")}
    assert documented == set(SAMPLERS) == get_choices(SamplingConfig, "sampler")


def test_choices_of_models_are_those_that_there_are():
    for row in read_table("field"):
        section, field = names_in(row[0])[0].split(".")
        config = typing.get_type_hints(Config)[section]
        assert {name for name in names_in(row[1]) if "." not in name} == get_choices(config, field), field


def test_ready_guides_have_these_arguments():
    documented = [names_in(row[0])[0] for row in read_table("guide")]
    expected = []
    for name, guide in guide_expressions._GUIDES.items():
        arguments = [
            p.name if p.default is p.empty else f"{p.name}={p.default!r}".replace("'", '"')
            for p in inspect.signature(guide).parameters.values()
        ]
        expected.append(f"{name}({', '.join(arguments)})")
    assert sorted(documented) == sorted(expected)
    for name in ("Function(function, violation_function)", "Value(network)", "WeightedSum"):
        assert f"`{name}`" in PLANNING
        given = re.findall(r"\w+", name)
        assert given[1:] == list(inspect.signature(getattr(guides, given[0])).parameters)[: len(given) - 1]


def test_expressions_are_explained_in_full():
    table = {row[0]: [re.sub(r"\(.*", "", name) for name in names_in(row[1])] for row in read_table("what")}
    assert set(table["names"]) == set(FIELDS)
    assert sorted(table["entry by entry"]) == sorted([*ELEMENTWISE, *PAIRWISE, "clip"])
    assert sorted([*table["over the columns"], *table["over steps and columns"]]) == sorted(REDUCTIONS)
    assert {*ELEMENTWISE, *PAIRWISE, *REDUCTIONS, "clip"} == set(guide_expressions._FUNCTIONS)
    limits = PLANNING.split("Limits: ")[1].split("\n\n")[0]
    assert [int(number) for number in re.findall(r"\d+", limits)] == [MAX_LENGTH, MAX_DEPTH, MAX_EXPONENT, MAX_INDEX]
