import dataclasses
import shutil

import numpy as np
import pytest
from struck_processes import draw_times, merge_once, run_struck
from walks import ENV, make_manifest, make_units, write_walks

from diffplan.data.format.commit import list_committed_units
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.manifest import Column, make_columns
from diffplan.data.format.snapshot import list_snapshots
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.maintenance.compaction import compact
from diffplan.data.maintenance.merging import Source, merge, read_episode
from diffplan.data.maintenance.verification import find_damage
from diffplan.data.windows.window_index import WindowIndex
from diffplan.errors import DataError
from diffplan.storage.opening import open_store

LENGTHS = {"a": [[30, 4, 17], [9, 25]], "b": [[3], [40], [12]], "c": [[8, 6, 7, 5]]}


@pytest.fixture
def roots(tmp_path):
    for name, lengths in LENGTHS.items():
        write_walks(tmp_path / name, lengths)
    return {name: tmp_path / name for name in LENGTHS}


def make_sources(roots, weights=(1.0, 2.0, 3.0)):
    return [Source(open_dataset(root), name, w) for (name, root), w in zip(roots.items(), weights, strict=False)]


def assert_equal_episodes(got, expected):
    for field in dataclasses.fields(expected):
        a, b = getattr(got, field.name), getattr(expected, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        elif field.name == "columns":
            assert a.keys() == b.keys()
            for name in b:
                assert a[name].dtype == b[name].dtype, name
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        else:
            assert a == b, field.name


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c"), ("c", "a")])
def test_every_episode_is_that_of_its_source(tmp_path, roots, names):
    sources = make_sources({name: roots[name] for name in names})
    seen = []
    merged = merge(sources, tmp_path / "out", on_progress=lambda *counts: seen.append(counts))
    assert merged.snapshot == 0
    assert [(t.name, t.weight, t.num_units, t.env) for t in merged.manifest.tasks] == [
        (name, i + 1.0, len(LENGTHS[name]), ENV) for i, name in enumerate(names)
    ]
    assert [t.dataset_uuid for t in merged.manifest.tasks] == [s.dataset.manifest.dataset_uuid for s in sources]
    total = sum(len(LENGTHS[name]) for name in names)
    assert seen == [(i + 1, total) for i in range(total)]
    number = 0
    for task, name in enumerate(names):
        for unit in make_units(LENGTHS[name]):
            for episode in unit:
                columns = {**episode.columns, "task": np.full(len(episode), task)}
                expected = dataclasses.replace(episode, episode_index=number, task=task, columns=columns)
                assert_equal_episodes(read_episode(merged, number), expected)
                number += 1
    assert len(merged.episodes) == number
    assert not any(find_damage(open_store(tmp_path / "out")))


def test_source_that_was_joined_or_written_in_another_order_merges_alike(tmp_path, roots):
    expected = merge(make_sources(roots), tmp_path / "expected").content_hash()
    compact(open_store(roots["a"]))
    shutil.rmtree(roots["b"])
    write_walks(roots["b"], LENGTHS["b"], only=(2, 0, 1))
    assert merge(make_sources(roots), tmp_path / "out").content_hash() == expected


def test_only_columns_that_all_sources_have_alike_are_kept(tmp_path, roots):
    root = tmp_path / "other"
    extra = (Column("goal", (2,), "float64", has_final=True), Column("cost", (), "float64"), Column("success"))
    manifest = create_dataset(root, make_manifest(columns=make_columns(3, 2, extra)))
    (episodes,) = make_units([[5, 6]])
    episodes = [
        dataclasses.replace(
            e,
            columns={
                "goal": e.columns["goal"].astype(np.float64),
                "cost": e.columns["cost"],
                "success": np.zeros(len(e), np.float32),
            },
        )
        for e in episodes
    ]
    write_unit(root, manifest, 0, episodes)
    merged = merge([Source(open_dataset(roots["a"]), "a"), Source(open_dataset(root), "b")], tmp_path / "out")
    assert [c.name for c in merged.manifest.extra_columns] == ["cost", "task"]
    np.testing.assert_array_equal(read_episode(merged, 6).columns["cost"], episodes[1].columns["cost"])
    np.testing.assert_array_equal(merged.read_column("task"), np.repeat([0, 1], [30 + 4 + 17 + 9 + 25, 5 + 6]))


def test_repeated_merge_is_the_first(tmp_path, roots):
    first = merge(make_sources(roots), tmp_path / "out")
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    again = merge(make_sources(roots), tmp_path / "out")
    assert again.manifest == first.manifest
    assert again.snapshot == first.snapshot == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("num_strikes", [4, pytest.param(16, marks=(pytest.mark.soak, pytest.mark.timeout(1200)))])
def test_killed_at_any_moment_it_goes_on_to_the_same_content(tmp_path, num_strikes, chaos_seed):
    roots = {"a": tmp_path / "a", "b": tmp_path / "b"}
    write_walks(roots["a"], [[6, 9]] * 12)
    write_walks(roots["b"], [[7]] * 8)
    _, seconds = run_struck(merge_once, roots, tmp_path / "undisturbed", after_seconds=None)
    expected = open_dataset(tmp_path / "undisturbed").content_hash()
    kills, num_done, num_units = 0, 0, {0}
    for after_seconds in draw_times(num_strikes, seconds, chaos_seed):
        out = tmp_path / f"out{num_done}"
        killed, _ = run_struck(merge_once, roots, out, after_seconds=after_seconds)
        kills += killed
        num_units.add(len(list_committed_units(open_store(out))))
        if not killed:
            assert open_dataset(out).content_hash() == expected
            num_done += 1
    assert kills >= num_strikes / 4
    assert len(num_units) > 1
    out = tmp_path / f"out{num_done}"
    assert not run_struck(merge_once, roots, out, after_seconds=None)[0]
    assert open_dataset(out).content_hash() == expected
    assert list_snapshots(open_store(out)) == [0]
    assert not any(find_damage(open_store(out)))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((-1.0, 2.0), r"merge: expected weights >= 0 that are not all 0, got \[-1.0, 2.0\]"),
        ((0.0, 0.0), r"merge: expected weights >= 0 that are not all 0, got \[0.0, 0.0\]"),
        ((float("nan"), 1.0), r"merge: expected weights >= 0 that are not all 0, got \[nan, 1.0\]"),
        ((float("inf"), 1.0), r"merge: expected weights >= 0 that are not all 0, got \[inf, 1.0\]"),
        ((1.0,), "merge: expected two or more datasets, got 1"),
        ((), "merge: expected two or more datasets, got 0"),
    ],
)
def test_bad_weights_and_counts_are_refused(tmp_path, roots, weights, message):
    with pytest.raises(DataError, match=f"^{message}"):
        merge(make_sources(roots, weights), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_datasets_of_one_name_are_refused(tmp_path, roots):
    sources = [Source(open_dataset(root), "same") for root in roots.values()]
    with pytest.raises(DataError, match="merge: expected a name of its own for each dataset, got same, same, same"):
        merge(sources, tmp_path / "out")


def with_columns(**changes):
    return {"columns": make_columns(**{"observation": 3, "action": 2, **changes})}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (with_columns(observation=4), r"expected observations of shape \(3,\) and type float32 as in .*, got \(4,\)"),
        (with_columns(action_dtype="float64"), r"expected actions of shape \(2,\) and type float32 .* float64;"),
        (with_columns(reward_dtype="float64"), r"expected rewards of shape \(\) and type float32 .* float64;"),
        ({"action_low": [-2.0, None]}, r"expected the action bounds .* only datasets with the same spaces"),
        (
            {"env": {**ENV, "step_seconds": 0.05}},
            r"expected steps of unknown length as in .*, got 0.05 s; plans could not be",
        ),
    ],
)
def test_datasets_that_do_not_fit_are_named(tmp_path, roots, changes, message):
    root = tmp_path / "other"
    manifest = create_dataset(root, make_manifest(**changes))
    size = manifest.observation_dim
    (episodes,) = make_units([[5]])
    names = [c.name for c in manifest.extra_columns]
    episode = dataclasses.replace(
        episodes[0],
        observations=np.zeros((6, size), np.float32),
        columns={name: episodes[0].columns[name] for name in names},
    )
    write_unit(root, manifest, 0, [episode])
    with pytest.raises(DataError, match=message) as caught:
        merge([*make_sources(roots), Source(open_dataset(root), "other")], tmp_path / "out")
    assert str(caught.value).startswith(f"{root}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_merged_dataset_is_not_merged_again(tmp_path, roots):
    merged = merge(make_sources(roots), tmp_path / "merged")
    source = Source(open_dataset(roots["a"]), "x")
    with pytest.raises(DataError, match=rf"^{tmp_path}.*: "):
        merge([source, Source(merged, "y")], tmp_path / "out")
    with pytest.raises(DataError, match=f"^{merged.uri}: it is a merged dataset already; merge what it was made of"):
        merge([Source(merged, "x"), Source(merged, "y")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_directory_of_another_dataset_is_refused(tmp_path, roots):
    sources = make_sources(roots)
    with pytest.raises(DataError, match=f"^{roots['a']}: expected a new directory or an interrupted merge of a, b, c"):
        merge(sources, roots["a"])
    merge(sources[:2], tmp_path / "out")
    for others in (sources[1::-1], sources, make_sources(roots, (1.0, 5.0))):
        with pytest.raises(DataError, match=f"^{tmp_path / 'out'}: expected .* take another --out"):
            merge(others, tmp_path / "out")


def test_source_that_grew_since_is_not_mixed_with_what_it_was(tmp_path, roots):
    merge(make_sources(roots), tmp_path / "out")
    write_walks(roots["c"], [*LENGTHS["c"], [5]], only=(1,))
    with pytest.raises(DataError, match="an interrupted merge of a, b, c as they are now"):
        merge(make_sources(roots), tmp_path / "out")


def test_windows_are_drawn_by_the_weights(tmp_path, roots):
    merged = merge(make_sources(roots), tmp_path / "out")
    index = WindowIndex(merged, 1)
    windows = index.draw(30_000, 4, np.random.default_rng(0))
    task = merged.episodes.task[index.locate(windows, 4)[0]]
    np.testing.assert_allclose(np.bincount(task) / 30_000, np.array([1, 2, 3]) / 6, atol=0.015)
