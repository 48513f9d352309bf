import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffplan.behaviors.collection import make_manifest
from diffplan.cli.run_status import read_status
from diffplan.cluster import work_meter
from diffplan.cluster.collect.coordinator import CollectionActor, UnitTask, collect
from diffplan.cluster.evaluate.coordinator import evaluate
from diffplan.cluster.work_meter import meter_work
from diffplan.data.format.writer import create_dataset
from diffplan.runs.usage import read_usage, record_usage
from diffplan.storage.opening import open_store
from diffplan.tasks.registry import get_preset


def read_curve(directory: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return [(scalar.step, scalar.value) for scalar in events.Scalars(name)]


def test_throughput_is_work_by_busy_time_of_each_actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_meter, "CURVE_SECONDS", 0.0)
    store = open_store(tmp_path)
    with (
        record_usage(store, "collect", cpus=3, total=1_000, unit="steps", initial=50) as usage,
        meter_work(store, "collect", "steps", usage, initial=50) as meter,
    ):
        meter.note("slow", 100, 4.0)
        meter.note("middle", 100, 2.0)
        meter.note("fast", 100, 0.5)
        meter.note("slow", 50, 1.0, score_mean=7.5)
        summary = meter.summarize()
    assert summary == {
        "actors": 3,
        "slowest_actor_steps_per_second": 30.0,
        "median_actor_steps_per_second": 50.0,
        "fastest_actor_steps_per_second": 200.0,
    }
    (recorded,) = read_usage(store)
    assert recorded.values == summary
    curves = tmp_path / "tensorboard"
    assert [step for step, _ in read_curve(curves, "collect/actors")] == [150, 250, 350, 400]
    assert read_curve(curves, "collect/slowest_actor_steps_per_second")[-1] == (400, 30.0)
    assert read_curve(curves, "collect/score_mean") == [(400, 7.5)]


def test_only_the_last_minute_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_000.0]
    monkeypatch.setattr(work_meter.time, "monotonic", lambda: clock[0])
    store = open_store(tmp_path)
    with (
        record_usage(store, "collect", cpus=1, unit="steps") as usage,
        meter_work(store, "collect", "steps", usage) as meter,
    ):
        meter.note("gone", 10, 1.0)
        clock[0] += 59
        meter.note("here", 30, 1.0)
        assert meter.summarize()["actors"] == 2
        clock[0] += 2
        meter.note("here", 10, 1.0)
        assert meter.summarize()["actors"] == 1
        assert meter.summarize()["slowest_actor_steps_per_second"] == 20.0


def test_a_killed_attempts_points_do_not_stay_beside_those_that_repeat_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_meter, "CURVE_SECONDS", 0.0)
    store = open_store(tmp_path)
    with record_usage(store, "evaluate", cpus=1) as usage:
        killed = work_meter.WorkMeter(store, "evaluate", "episodes", usage, 0)
        for _ in range(4):
            killed.note("first", 25, 1.0)
        time.sleep(1.1)  # the names of the files hold whole seconds
        with meter_work(store, "evaluate", "episodes", usage, initial=50) as meter:
            for _ in range(2):
                meter.note("second", 25, 1.0)
    steps = [step for step, _ in read_curve(tmp_path / "tensorboard", "evaluate/episodes_per_second")]
    assert steps == [25, 50, 75, 100]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_stages_leave_curves_and_metrics_of_ray(tmp_path: Path) -> None:
    config = get_preset("maze2d-umaze-smoke")
    collect(config.env, config.collection, tmp_path / "data", num_workers=2)
    *_, (_, actors) = read_curve(tmp_path / "data" / "tensorboard", "collect/actors")
    assert 1 <= actors <= 2
    evaluate("pretrained:maze2d-umaze", tmp_path / "scores", protocol="maze2d", episodes=20, num_workers=1)
    *_, (episodes, score) = read_curve(tmp_path / "scores" / "tensorboard", "evaluate/median_actor_episodes_per_second")
    assert episodes == 20
    assert score > 0
    *_, (_, mean) = read_curve(tmp_path / "scores" / "tensorboard", "evaluate/score_mean")
    assert mean == pytest.approx(json.loads((tmp_path / "scores" / "summary.json").read_text())["score_mean"], rel=1e-5)
    for out in ("data", "scores"):
        (stage,) = read_status(tmp_path / out)
        assert stage.state == "done"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_actors_count_their_work_for_ray(tmp_path: Path) -> None:
    config = get_preset("maze2d-umaze-smoke")
    store = open_store(tmp_path)
    manifest = create_dataset(store, make_manifest(config.env, config.collection))
    collector: Any = CollectionActor.remote(store, config.env, config.collection, manifest, {})
    report: Any = ray.get(collector.run.remote(UnitTask(0, is_needed=True)))
    assert wait_for_metric("ray_diffplan_steps_total", "collect") >= report.num_steps
    ray.kill(collector)  # before that, the last counts of a process are still on their way


def wait_for_metric(name: str, stage: str) -> float:
    """Sum of a counter over the processes of the cluster, once it is there."""
    deadline = time.monotonic() + 60
    total = 0.0
    while not total and time.monotonic() < deadline:
        for node in ray.nodes():
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read().decode()
            lines = re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE)
            total += sum(float(value) for labels, value in lines if f'stage="{stage}"' in labels)
        time.sleep(0.5)
    return total
