import html
import json
import re
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from diffplan.checkpoint import save_checkpoint
from diffplan.config import Config, EnvConfig, config_to_dict, with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.manifest import Manifest, make_columns, new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.windows.normalization import Normalizer
from diffplan.errors import DataError
from diffplan.evaluation.scores import EpisodeResult, results_to_rows, summarize
from diffplan.layout import Layout
from diffplan.networks.factory import make_network
from diffplan.report.contents import sample_observations
from diffplan.report.images import figure_to_array
from diffplan.report.page import write_report
from diffplan.tasks.maze2d.environment import get_maze
from diffplan.tasks.maze2d.figures import draw_plan_on_maze
from diffplan.tasks.registry import get_preset
from diffplan.types import Episode

ENV_ID = "diffplan/Maze2D-UMaze-v1"
CONFIG = get_preset("maze2d-umaze-smoke")


def write_a_dataset(root: Path) -> None:
    manifest = Manifest(
        dataset_uuid=new_dataset_uuid(),
        env=config_to_dict(CONFIG.env),
        collection=config_to_dict(CONFIG.collection),
        columns=make_columns(4, 2),
        action_low=[-1.0, -1.0],
        action_high=[1.0, 1.0],
    )
    create_dataset(root, manifest)
    rng = np.random.default_rng(0)
    for unit in range(2):
        episodes = [
            Episode(
                episode_index=2 * unit + i,
                seed=i,
                behavior="waypoint",
                observations=rng.uniform(1, 3, (51, 4)).astype(np.float32),
                actions=np.zeros((50, 2), np.float32),
                rewards=rng.integers(0, 2, 50).astype(np.float32),
                terminated=False,
                truncated=True,
            )
            for i in range(2)
        ]
        write_unit(root, manifest, unit, episodes)


def write_a_checkpoint(directory: Path, config: Config = CONFIG) -> None:
    layout = Layout(observation_dim=4)
    weights = make_network(layout.transition_dim, config.network, config.windows.max_horizon).state_dict()
    save_checkpoint(
        directory,
        config=config,
        layout=layout,
        step=77,
        normalizer=Normalizer(np.array([2.0, 2.0, 0.0, 0.0], np.float32), np.ones(4, np.float32)),
        weights=weights,
        dataset={},
        training_state={},
    )


def write_curves(directory: Path) -> None:
    with SummaryWriter(str(directory)) as writer:
        for step in range(10, 100, 10):
            writer.add_scalar("train/loss", 1.0 / step, step)
            writer.add_scalar("time/steps_per_second", 30.0, step)


def make_results(score: float) -> list[EpisodeResult]:
    return [
        EpisodeResult(
            episode=i,
            seed=i,
            goal=[1.0, 1.0],
            start=[3.0, 1.0, 0.0, 0.0],
            undiscounted_return=200.0 + i,
            score=score + i,
            success=i > 0,
            time_to_goal_steps=10 * i if i > 0 else None,
            length=300,
            horizon=8,
            plan_speed_error=1.0,
            num_plans=1,
            plan_seconds=0.1,
        )
        for i in range(4)
    ]


def write_an_evaluation(directory: Path, protocol: str, score: float) -> dict:
    directory.mkdir(parents=True)
    results = make_results(score)
    config = {"env": config_to_dict(CONFIG.env), "planning": config_to_dict(CONFIG.planning)}
    summary = summarize(
        results, env_id=ENV_ID, protocol=protocol, references=(23.85, 161.86), wall_seconds=2.0, config=config
    )
    (directory / "summary.json").write_text(json.dumps(summary))
    pq.write_table(pa.Table.from_pylist(results_to_rows(results)), directory / "episodes.parquet")
    arrays = {}
    for i in range(2):
        arrays[f"observations_{i}"] = np.linspace([3, 1, 0, 0], [1, 1, 0, 0], 301).astype(np.float32)
        arrays[f"plan_{i}"] = np.linspace([3, 1, 0, 0], [1, 1, 0, 0], 8).astype(np.float32)
        arrays[f"goal_{i}"] = np.array([1.0, 1.0])
    np.savez(directory / "recordings.npz", **arrays)
    return summary


def write_a_search(directory: Path) -> None:
    directory.mkdir()
    numbers = {"score_mean": 100.0, "success_rate": 1.0, "plan_seconds": 0.1}
    trials = [
        {
            "params": {"planning.guidance.scale": 0.5 * i, "planning.selection.num_candidates": 1 + i % 2},
            "error": None,
            "objective": 91.25 + i,
            "episodes": 8 if i != 1 else 4,
            **numbers,
        }
        for i in range(3)
    ]
    failed = {"params": trials[0]["params"], "error": "it broke", "objective": None, "episodes": None}
    settings = asdict(with_overrides(CONFIG.planning, {"guidance.scale": 1.0, "selection.num_candidates": 1}))
    best = {
        "settings": settings,
        "objective": 93.25,
        "episodes": 8,
        "protocols": ["multi2d"],
        "wall_seconds": 3.0,
        **numbers,
    }
    (directory / "best.json").write_text(json.dumps(best))
    (directory / "trials.json").write_text(json.dumps([*trials, failed]))


def write_pipeline(run: Path, **changes: object) -> None:
    stages = [{"name": "collect", "seconds": 30.0}, {"name": "train", "seconds": 117.0}]
    values = {"preset": "maze2d-umaze-smoke", "stages": stages, "command": "diffplan pipeline", "machine": {"cpus": 2}}
    (run / "pipeline.json").write_text(json.dumps({**values, **changes}))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    write_a_dataset(run / "dataset")
    write_a_checkpoint(run / "checkpoint")
    write_curves(run / "tensorboard")
    write_a_search(run / "search")
    write_an_evaluation(run / "evaluation" / "maze2d", "maze2d", 150.0)
    write_an_evaluation(run / "evaluation" / "multi2d", "multi2d", 90.0)
    write_pipeline(run)
    return run


@pytest.fixture(scope="module")
def whole_page(whole_run):
    torch.manual_seed(0)
    return write_report(whole_run).read_text()


def text_of(page: str) -> str:
    """The page's text without images and tags."""
    without = re.sub(r'src="data:[^"]*"', "", page)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", without)))


def test_the_page_loads_nothing(whole_page):
    assert not re.search(r"<(link|script|iframe|object)\b", whole_page)
    assert not re.search(r"@import|url\(", whole_page)
    sources = re.findall(r'(?:src|href)="([^"]*)"', whole_page)
    assert len(sources) > 20
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert len(whole_page) < 3_000_000


def test_the_page_is_whole_html(whole_page):
    assert whole_page.startswith("<!doctype html>")
    assert whole_page.rstrip().endswith("</html>")
    for tag in ("section", "figure", "table", "div", "details", "p"):
        assert len(re.findall(rf"<{tag}\b", whole_page)) == whole_page.count(f"</{tag}>"), tag
    anchors = re.findall(r'href="#(\w+)"', whole_page)
    assert anchors == re.findall(r'<section id="(\w+)"', whole_page)
    assert anchors == ["scores", "data", "training", "plans", "rollouts", "search", "times", "making"]


def test_the_page_holds_the_numbers(whole_run, whole_page):
    text = text_of(whole_page)
    for protocol in ("maze2d", "multi2d"):
        summary = json.loads((whole_run / "evaluation" / protocol / "summary.json").read_text())
        low, high = summary["score_ci95"]
        assert f"{summary['score_mean']:.1f}" in text
        assert f"{low:.1f} to {high:.1f}" in text
    assert "75 % of 4 episodes, 95 %: 30 to 95 %" in text
    assert "200 (0.0 h of simulated time)" in text
    assert "waypoint (4 episodes)" in text
    assert "in 77 steps of 64 windows" in text
    assert "the last value is 0.01111 at step 90" in text
    assert "2 ran over all 8 tuning episodes, 1 was stopped early by ASHA because others did better, 1 failed" in text
    assert "The best full trial has an objective of 93.2" in text
    assert "1 of 4 never reached it" in text
    assert "2.5 min" in text
    assert "Maze2D-UMaze-v1" in text
    assert "never there, 1 plan, score 150" in text
    assert '"sampling": { "sampler": "ddim", "num_steps": 4' in text
    assert "Not here yet" not in text


def test_the_verdict_claims_no_more_than_the_interval(whole_page):
    text = text_of(whole_page)
    assert "Above the highest published score listed here (SSD, 144.6), and so is the whole 95 % interval" in text
    assert "Below the highest published score listed here (SSD, 158.2), outside the 95 %" in text


def test_the_same_run_gives_the_same_page(whole_run, whole_page):
    since = time.process_time()
    assert write_report(str(whole_run)).read_text() == whole_page
    assert time.process_time() - since < 15
    assert [path.name for path in whole_run.glob(".tmp*")] == []


def test_missing_stages_get_a_sentence(tmp_path):
    write_an_evaluation(tmp_path / "evaluation" / "maze2d", "maze2d", 120.0)
    page = write_report(tmp_path).read_text()
    text = text_of(page)
    for stage in ("Multi2D evaluation", "collection", "training", "search"):
        assert f"Not here yet: the {stage} stage has not run" in text
    assert "Plans need a checkpoint, and there is none yet (no checkpoint/ )" in text
    assert "The times of the stages were not recorded" in text
    assert "Multi2D score" not in text
    assert 'id="rollouts"' in page


def test_a_dataset_alone_makes_a_page(tmp_path):
    write_a_dataset(tmp_path / "dataset")
    text = text_of(write_report(tmp_path).read_text())
    assert "Steps collected 200" in text
    for stage in ("evaluation", "training", "search"):
        assert f"Not here yet: the {stage} stage has not run" in text


def test_the_network_is_named_as_it_is(tmp_path, whole_page):
    assert "A temporal U-Net with " in text_of(whole_page)
    network = replace(CONFIG.network, kind="transformer", dim=32, depth=1)
    write_a_checkpoint(tmp_path / "checkpoint", replace(CONFIG, network=network))
    text = text_of(write_report(tmp_path).read_text())
    assert "A diffusion transformer with " in text
    assert "U-Net" not in text


def test_text_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>"
    write_an_evaluation(tmp_path / "evaluation" / "maze2d", "maze2d", 120.0)
    write_pipeline(tmp_path, preset=evil, command=evil, machine={evil: evil}, stages=[{"name": evil, "seconds": 1.0}])
    page = write_report(tmp_path).read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 5


def test_an_empty_directory_is_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match=r"expected a pipeline run \(.*\), got an empty directory$") as caught:
        write_report(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_other_things_are_refused(tmp_path):
    with pytest.raises(DataError, match="got nothing there"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"got a directory with notes\.txt"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="got a file"):
        write_report(tmp_path / "notes.txt")


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_damaged_summary_is_refused(tmp_path, content):
    write_an_evaluation(tmp_path / "evaluation" / "maze2d", "maze2d", 120.0)
    (tmp_path / "evaluation" / "maze2d" / "summary.json").write_text(content)
    with pytest.raises(DataError, match=r"summary\.json: expected .*run its stage again"):
        write_report(tmp_path)


def test_observations_of_large_datasets_are_sampled(tmp_path, monkeypatch):
    write_a_dataset(tmp_path / "dataset")
    dataset = open_dataset(tmp_path / "dataset")
    assert sample_observations(dataset).shape == (200, 4)
    monkeypatch.setattr("diffplan.report.contents.MAX_OBSERVATIONS", 50)
    assert sample_observations(dataset).shape == (50, 4)


def test_the_picture_of_a_maze_has_its_walls():
    maze = get_maze(EnvConfig(env_id=ENV_ID))
    position = np.array([1.0, 1.0])
    pixels = figure_to_array(draw_plan_on_maze(maze, position[None].repeat(2, 0), position, position))
    middle = pixels[pixels.shape[0] // 2]
    assert middle[middle.shape[0] // 3].max() < 0x70  # the wall between the arms of the U
    assert middle[-middle.shape[0] // 4].min() > 0xE0  # the free cells to its right
