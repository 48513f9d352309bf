import threading
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch

from diffplan.cluster.evaluate import coordinator as evaluation
from diffplan.cluster.evaluate.coordinator import evaluate
from diffplan.cluster.evaluate.planner_actor import RemotePlanner, count_planners, spawn_planners
from diffplan.errors import ClusterError, ConfigError, PlanningError
from diffplan.evaluation.protocol import EPISODES_PER_UNIT
from diffplan.evaluation.sources import find_policy
from diffplan.evaluation.unit_results import UnitResults
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import Planner

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
EPISODES = EPISODES_PER_UNIT + 5
COLUMNS = ["episode", "seed", "start", "goal", "undiscounted_return", "success", "horizon", "num_plans"]
SETTINGS = {"protocol": "multi2d", "episodes": EPISODES, "seed": 3, "num_workers": 1}
OBSERVATIONS = np.array([[1.0, 1.0, 0.0, 0.0], [3.0, 2.9, 0.2, 0.0], [2.1, 3.0, 0.0, -0.1]])
GOALS = np.array([[3.0, 3.0], [1.1, 1.0], [3.0, 1.0]])


def read(out: Path) -> object:
    return pq.read_table(out / "episodes.parquet", columns=COLUMNS)


@pytest.fixture(scope="module")
def without(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    out = tmp_path_factory.mktemp("planners") / "without"
    evaluate(tiny_checkpoint, out, num_planners=0, **SETTINGS)
    return read(out)


@pytest.fixture
def planners(tiny_checkpoint: Path):
    """One planner, on a CPU."""
    load = find_policy(tiny_checkpoint).load_planner
    assert load is not None
    spawned = spawn_planners(load, 1)
    yield spawned
    for planner in spawned:
        ray.kill(planner)


def ask_often(planner: Planner | RemotePlanner, seed: int, num: int = 6) -> list[np.ndarray]:
    """Plans of several requests in a row that share their random numbers, from a part of the environments each."""
    generator = torch.Generator().manual_seed(seed)
    answers = []
    for i in range(num):
        part = slice(0, 1 + (i + seed) % 3)
        plans = planner.plan(OBSERVATIONS[part], GOALS[part], generator)
        answers += [plan.observations for plan in plans]
    return answers


def test_results_are_those_without_planner_actors(without: object, tiny_checkpoint: Path, tmp_path: Path) -> None:
    evaluate(tiny_checkpoint, tmp_path, num_planners=1, **SETTINGS)
    assert read(tmp_path).equals(without)


def test_a_planner_that_dies_changes_no_result(
    without: object, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned, killed = [], []

    def spawn(*arguments):
        spawned.extend(spawn_planners(*arguments))
        return spawned

    def write(self, unit, results):
        if not killed:
            ray.kill(spawned[0], no_restart=False)
        killed.append(unit)
        write_unit(self, unit, results)

    write_unit = UnitResults.write
    monkeypatch.setattr(evaluation, "spawn_planners", spawn)
    monkeypatch.setattr(UnitResults, "write", write)
    evaluate(tiny_checkpoint, tmp_path, num_planners=1, **SETTINGS)
    assert killed == [0, 1]
    assert read(tmp_path).equals(without)


def test_requests_under_way_when_it_dies_are_made_again(planners: list, tiny_checkpoint: Path) -> None:
    remote, answers = RemotePlanner(planners[0]), []
    thread = threading.Thread(target=lambda: answers.extend(ask_often(remote, 0, num=60)))
    thread.start()
    ray.kill(planners[0], no_restart=False)
    thread.join(120)
    expected = ask_often(load_planner(tiny_checkpoint), 0, num=60)
    assert len(answers) == len(expected)
    assert all(np.array_equal(answer, other) for answer, other in zip(answers, expected, strict=True))


def test_the_noise_in_plans_is_ones_own_whoever_else_is_asking(planners: list, tiny_checkpoint: Path) -> None:
    answers: dict[int, list[np.ndarray]] = {}

    def ask(seed: int) -> None:
        answers[seed] = ask_often(RemotePlanner(planners[0]), seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    planner = load_planner(tiny_checkpoint)
    for seed, got in answers.items():
        for answer, other in zip(got, ask_often(planner, seed), strict=True):
            np.testing.assert_allclose(answer, other, atol=1e-4)


def test_it_has_what_policies_ask_of_a_planner(planners: list, tiny_checkpoint: Path) -> None:
    remote, planner = RemotePlanner(planners[0]), load_planner(tiny_checkpoint)
    assert (remote.config, remote.settings) == (planner.config, planner.settings)
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    plans = [p.plan(OBSERVATIONS, GOALS, g) for p, g in zip((remote, planner), generators, strict=True)]
    again = [
        p.replan(old, np.array([0, 2, 5]), OBSERVATIONS, GOALS, g, max_speed_errors=np.full(3, 9.0))
        for p, old, g in zip((remote, planner), plans, generators, strict=True)
    ]
    within = [
        p.plan_within(OBSERVATIONS, GOALS, g, np.full(3, 99), max_speed_errors=np.full(3, 1e9))
        for p, g in zip((remote, planner), generators, strict=True)
    ]
    for one, other in (plans, again, within):
        assert all(np.array_equal(a.observations, b.observations) for a, b in zip(one, other, strict=True))
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_what_the_user_can_cure_arrives_as_it_was_raised(planners: list) -> None:
    remote = RemotePlanner(planners[0])
    with pytest.raises(PlanningError) as info:
        remote.plan(OBSERVATIONS, GOALS[:1], torch.Generator())
    assert type(info.value) is PlanningError
    ray.kill(planners[0])
    with pytest.raises(ClusterError, match="planner: it died") as dead:
        ask_often(remote, 0, num=1000)
    assert "\n" not in str(dead.value)


def test_what_cannot_work_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    refused = partial(evaluate, tiny_checkpoint, tmp_path, protocol="maze2d", episodes=2)
    with pytest.raises(ConfigError, match="num_planners: expected at least 0, got -1"):
        refused(num_planners=-1)
    with pytest.raises(ClusterError, match="2 evaluation workers and 1 planners: expected at least 3 CPUs"):
        refused(num_workers=2, num_planners=1)
    assert count_planners(None) == 0  # one for each GPU, of which the cluster has none
    assert count_planners(3) == 3
