"""The proof of the seam: a family's name stands in its own folder of `tasks/` alone, as text and as an import."""

import re
from pathlib import Path

import pytest

import diffplan
from diffplan.tasks.registry import list_tasks

PACKAGE = Path(diffplan.__file__).parent
WORDS = {
    "maze2d": "maze",
    "locomotion": "hopper|walker2d|halfcheetah|locomotion",
    "stacking": "stacking",
}
"""What gives a family away."""
KNOWN: dict[str, set[str]] = {"maze2d": set(), "locomotion": set(), "stacking": set()}
"""Files that still say it, by the family; to be emptied, never to be added to."""


def read_texts(outside: Path) -> dict[str, str]:
    """The package's files of text outside of a folder, by their paths."""
    texts = {}
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.is_relative_to(outside):
            try:
                texts[str(path.relative_to(PACKAGE))] = path.read_text()
            except UnicodeDecodeError:
                continue
    return texts


def test_every_family_is_watched():
    folders = {path.parent.name for path in PACKAGE.glob("tasks/*/__init__.py")}
    assert folders == set(WORDS) == set(KNOWN)
    assert folders <= set(list_tasks())


@pytest.mark.parametrize("family", WORDS)
def test_a_family_is_named_in_its_own_folder_alone(family):
    word = re.compile(WORDS[family], re.IGNORECASE)
    folder = PACKAGE / "tasks" / family
    assert word.search((folder / "__init__.py").read_text())
    texts = read_texts(outside=folder)
    assert len(texts) > 150
    found = {
        name
        for name, text in texts.items()
        if word.search(text) or word.search(name)
    }  # fmt: skip
    assert found == KNOWN[family]
