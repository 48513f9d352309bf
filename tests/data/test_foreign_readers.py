"""Datasets and exports as other tools read them; the code of docs/data_readers.md is what runs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pytest

from diffplan.data.format.dataset import TrajectoryDataset, open_dataset, write_snapshot
from diffplan.data.format.manifest import Column, Manifest, make_columns, new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.types import Episode

PAGE = Path(__file__).parents[2] / "docs" / "data_readers.md"
SECTIONS = dict(
    (section.split("\n", 1)[0], re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE))
    for section in PAGE.read_text().split("\n## ")[1:]
)


def write_made_up(root: Path) -> TrajectoryDataset:
    columns = make_columns(3, 2, (Column("goal", (2,), "float64"), Column("success", (), "bool")))
    manifest = Manifest(new_dataset_uuid(), {"env_id": "diffplan/Maze2D-UMaze-v1"}, columns, [-1, -1], [1, 1])
    create_dataset(root, manifest)
    for unit, lengths in enumerate([[30, 50], [40]]):
        generator = np.random.default_rng(unit)
        episodes = [
            Episode(
                episode_index=2 * unit + i,
                seed=i,
                behavior="random",
                observations=generator.standard_normal((length + 1, 3)).astype(np.float32),
                actions=generator.uniform(-1, 1, (length, 2)).astype(np.float32),
                rewards=generator.standard_normal(length).astype(np.float32),
                terminated=False,
                truncated=True,
                columns={"goal": generator.standard_normal((length, 2)), "success": generator.random(length) < 0.5},
            )
            for i, length in enumerate(lengths)
        ]
        write_unit(root, manifest, unit, episodes)
    write_snapshot(open_dataset(root))
    return open_dataset(root)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a dataset and the exports of it that the page makes."""
    place = tmp_path_factory.mktemp("readers")
    write_made_up(place / "data" / "umaze")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for code in SECTIONS["diffplan"]:
            exec(code, {})
    return place


@pytest.fixture
def dataset(place: Path, monkeypatch: pytest.MonkeyPatch) -> TrajectoryDataset:
    monkeypatch.chdir(place)
    return open_dataset("data/umaze")


def run_section(name: str) -> dict[str, Any]:
    """Run the code of a section and return its variables."""
    assert SECTIONS[name], f"{PAGE} has no code under {name!r}"
    variables: dict[str, Any] = {}
    for code in SECTIONS[name]:
        exec(code, variables)
    return variables


def require_equal(read: Callable[[str], Any], dataset: TrajectoryDataset, *, shards: bool = False) -> None:
    """Compare columns with those of the dataset, whatever the order of the episodes."""
    indices, steps = np.asarray(read("episode_index")), np.asarray(read("t"))
    order = np.lexsort([steps, indices])
    lengths = dataset.episodes.length
    assert indices[order].tolist() == np.repeat([0, 1, 2], lengths).tolist()
    for column in dataset.manifest.columns:
        values = read(column.name)
        found = np.stack(list(values)) if column.shape else np.asarray(values)
        expected = dataset.read_column(column.name)
        if column.dtype == "bool" and shards:
            expected = expected.view(np.uint8)
        assert found.dtype == expected.dtype, column
        assert np.array_equal(found[order], expected), column


def read_lists(table: Any) -> Callable[[str], Any]:
    """Columns of an Arrow table as arrays, [rows, size] for lists."""

    def read(name: str) -> np.ndarray:
        column = table.column(name).combine_chunks()
        values = column.flatten() if hasattr(column.type, "list_size") else column
        return values.to_numpy(zero_copy_only=False).reshape(len(column), -1).squeeze(1 if values is column else ())

    return read


def test_pyarrow_reads_the_files_that_count(dataset: TrajectoryDataset) -> None:
    orphan = Path(dataset.uri) / "shards" / "00000007-deadbeef0000.arrow"
    orphan.write_bytes((Path(dataset.uri) / dataset.shards[0].name).read_bytes())
    try:
        first, second = SECTIONS["pyarrow"]
        variables: dict[str, Any] = {}
        exec(first, variables)
        require_equal(read_lists(variables["steps"]), dataset, shards=True)
        assert variables["episodes"].num_rows == 3
        finals = np.float32(variables["episodes"].column("final_observation").to_pylist())
        assert np.array_equal(finals, dataset.episodes.final_observations)
        exec(second, variables)
        require_equal(read_lists(variables["steps"]), dataset)
    finally:
        orphan.unlink()


def test_pyarrow_reads_the_directory_of_shards(dataset: TrajectoryDataset) -> None:
    table = pyarrow.dataset.dataset("data/umaze/shards", format="ipc").to_table()
    require_equal(read_lists(table), dataset, shards=True)


def test_pandas(dataset: TrajectoryDataset) -> None:
    import pandas

    variables = run_section("pandas")
    require_equal(lambda name: variables["steps"][name].to_numpy(), dataset)
    assert variables["episodes"]["length"].tolist() == [30, 50, 40]
    assert len(variables["shard"]) in (80, 40)
    frames = pandas.concat([pandas.read_feather(path) for path in Path("data/umaze/shards").glob("*.arrow")])
    require_equal(lambda name: frames[name].to_numpy(), dataset, shards=True)


def test_polars(dataset: TrajectoryDataset) -> None:
    pytest.importorskip("polars")
    variables = run_section("polars")
    require_equal(lambda name: variables["shards"][name].to_numpy(), dataset, shards=True)
    require_equal(lambda name: variables["steps"][name].to_numpy(), dataset)


def test_duckdb(dataset: TrajectoryDataset) -> None:
    pytest.importorskip("duckdb")
    variables = run_section("DuckDB")
    columns = variables["steps"].fetchnumpy()
    require_equal(lambda name: np.ma.getdata(columns[name]), dataset)
    returns = dict(variables["returns"].fetchall())
    expected = dataset.episodes.column("undiscounted_return")
    assert [returns[i] for i in range(3)] == pytest.approx(expected.tolist(), abs=1e-5)


def test_hugging_face(dataset: TrajectoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    variables = run_section("Hugging Face datasets")
    for name, shards in (("shards", True), ("steps", False)):
        require_equal(read_lists(variables[name].with_format("arrow")[:]), dataset, shards=shards)
    assert list((tmp_path / "cache").iterdir())


@pytest.mark.ray
def test_ray_data(ray_cluster: None, dataset: TrajectoryDataset) -> None:
    variables = run_section("Ray Data")
    for name, shards in (("steps", False), ("tables", True)):
        read = variables[name]
        assert read.count() == dataset.num_steps
        frame = read.to_pandas()
        require_equal(lambda column, frame=frame: frame[column].to_numpy(), dataset, shards=shards)


def test_every_section_of_the_page_is_run() -> None:
    here = {"diffplan", "pyarrow", "pandas", "polars", "DuckDB", "Hugging Face datasets", "Ray Data"}
    assert set(SECTIONS) == here | {"RLlib"}  # RLlib: tests/cluster/test_rllib_offline.py
    assert sum(map(len, SECTIONS.values())) == PAGE.read_text().count("```") // 2
