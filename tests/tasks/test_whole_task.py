"""A task with every part filled in, outside of the package: each stage takes its parts from it, and nothing else."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import small_runs
from gymnasium import spaces
from matplotlib.figure import Figure

from diffplan.behaviors.collection import UnitCollector
from diffplan.cli.data.report import draw_coverage
from diffplan.cli.main import main
from diffplan.config import (
    CollectionConfig,
    Config,
    DiffusionConfig,
    EnvConfig,
    HorizonConfig,
    NetworkConfig,
    OwnController,
    PlanningConfig,
    SamplingConfig,
    TrainingConfig,
    WindowConfig,
    with_overrides,
)
from diffplan.config.study import Between, Study
from diffplan.data.format.dataset import open_dataset
from diffplan.evaluation.policies import list_scripted
from diffplan.evaluation.protocol import apply_protocol, choose_protocols
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.evaluation.scores import normalize_score, summarize
from diffplan.evaluation.sources import find_policy
from diffplan.evaluation.table import format_table
from diffplan.planning.constraints import Bounds
from diffplan.planning.control.controllers import PlanFollower
from diffplan.planning.loading import load_planner
from diffplan.report.contents import read_run
from diffplan.report.page import write_report
from diffplan.report.plan_pictures import draw_sampled_plans
from diffplan.seeding import Stream
from diffplan.tasks.contracts import Ask, BehaviorPart, FigureWords, Metric, PublishedScore
from diffplan.tasks.registry import complete_env, find_experiment, make_experiment_figures, make_figures, task_of
from diffplan.tasks.task import Preset, Protocol, Task
from diffplan.terminal import ASCII
from diffplan.tuning.metrics import summarize_trial
from diffplan.tuning.studies import find_study, list_studies

HERE = __name__
STEPS = 30
DT = 0.1
CRUISE = 0.35
"""Speed limit that episodes tell of."""


class Hover(gymnasium.Env):
    """A drone in a plane that is led to a target; observations are x, y, vx, vy, actions accelerations.

    Args:
        reach: how far targets may lie from the start.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)
    action_space = spaces.Box(-0.4, 2.0, (2,), np.float32)

    def __init__(self, reach: float = 1.0) -> None:
        self.reach = reach

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.concatenate([self.np_random.uniform(-1, 1, 2), np.zeros(2)])
        self.target = self.state[:2] + self.np_random.uniform(-self.reach, self.reach, 2)
        if options and "goal" in options:
            self.target = np.array(options["goal"], dtype=np.float64)
        return self.state.copy(), self._info()

    def step(self, action):
        velocity = self.state[2:] + DT * np.clip(action, self.action_space.low, self.action_space.high)
        self.state = np.concatenate([self.state[:2] + DT * velocity, velocity])
        return self.state.copy(), -float(self._distance()), False, False, self._info()

    def _distance(self):
        return np.linalg.norm(self.state[:2] - self.target)

    def _info(self):
        return {"goal": self.target, "success": bool(self._distance() < 0.2), "cruise": CRUISE}


gymnasium.register("tests/Hover-v0", entry_point=Hover, max_episode_steps=STEPS)


# The parts


class Wander:
    """Accelerates to and fro, each episode in a rhythm of its own."""

    def __init__(self, context):
        assert context.env.position_columns == (0, 1)  # the roles are known
        self.low, self.high = context.action_low, context.action_high

    def reset(self, observations, generators):
        self.phases = np.array([generator.uniform(0, 2 * np.pi) for generator in generators])
        self.step = 0

    def act(self, observations):
        self.step += 1
        share = (np.sin(self.phases + self.step / 5)[:, None] + 1) / 2
        return (self.low + share * (self.high - self.low)).astype(np.float32)

    def columns(self):
        return {"phase": self.phases}


class Fall:
    """Does nothing."""

    def __init__(self, context):
        assert context.env.env_kwargs["reach"] in (0.5, 3.0)  # those of the protocol
        self.num_actions = len(context.action_low)

    def reset(self, observations, goals):
        assert goals is not None

    def act(self, observations):
        return np.zeros((len(observations), self.num_actions), dtype=np.float32)


class Glide(PlanFollower):
    """Accelerates towards the planned velocity."""

    made = 0

    def __init__(self, context):
        super().__init__(context.env, context.action_low, context.action_high)
        np.testing.assert_allclose([context.action_low, context.action_high], [[-0.4] * 2, [2.0] * 2], rtol=1e-6)
        Glide.made += 1

    def compute_actions(self, observations, targets, envs):
        return (targets[:, 2:] - observations[:, 2:]) / DT


def ask(env, observations, infos):
    """The target, and plans that are no faster than episodes allow."""
    limit = float(infos["cruise"][0])
    return Ask(goals=np.array(infos["goal"]), constraints=(Bounds(low=-limit, high=limit, columns=(2, 3)),))


def measure(episodes):
    steps = episodes.steps
    ends = steps.observations[steps.lengths, np.arange(len(steps.lengths)), :2]
    return {
        "miss": np.linalg.norm(ends - episodes.goals, axis=1),
        "late_share": np.where(steps.times_to_goal >= 0, steps.times_to_goal / steps.lengths, np.nan),
    }


class HoverFigures:
    """Draws positions as points, and says by titles what it was given."""

    words = FigureWords(
        plans="Points are where the drone is to be.", rollouts="Points are where it was.", data="Where drones were."
    )

    def __init__(self, env):
        self.env = env

    def _draw(self, title, *positions):
        figure = Figure(figsize=(2, 2))
        axes = figure.subplots()
        axes.set_title(title)
        for points in positions:
            axes.plot(points[:, 0], points[:, 1], ".")
        return figure

    def choose_problems(self, windows, num, generator):
        return windows[:num, 0], windows[:num, -1, list(self.env.goal_columns)]

    def draw_plans(self, plans, goals):
        return self._draw(f"{len(plans)} plans to {np.shape(goals)}", *(plan.observations for plan in plans))

    def draw_plan(self, observations, goal):
        return self._draw("plan", observations)

    def draw_rollout(self, plan, stride, executed, goal, reached_step):
        return self._draw(f"rollout {stride}", plan, executed)

    def draw_data(self, observations):
        return self._draw(f"data of {self.env.env_id}", observations)


def draw_text_map(env, positions, width, characters):
    assert positions.shape[1] == 2
    return [f"{len(positions)} places of {env.env_id}"]


class HoverTable:
    """A benchmark of two methods that need no training."""

    tasks = ("near",)
    methods = ("fall", "random")

    def make(self, request, announce):
        rows = []
        for method in request.methods or self.methods:
            announce(f"evaluate {method}")
            env = apply_protocol("near", ENV)
            results, _ = evaluate_episodes(list_scripted(HOVER)[method], env, range(2), seed=request.seed)
            summary = summarize(
                results, env_id=env.env_id, protocol="near", references=None, wall_seconds=0.0, config={}
            )
            rows.append({"method": method, "score_mean": summary["score_mean"]})
        return rows

    def write(self, rows, directory, command):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "hover.md").write_text("\n".join(f"{row['method']}: {row['score_mean']:.1f}" for row in rows))
        return directory / "hover.md"

    def package(self, request, directory):
        return {}


ROLES = EnvConfig(
    env_id=f"{HERE}:tests/Hover-v0",
    position_columns=(0, 1),
    velocity_columns=(2, 3),
    goal_columns=(0, 1),
    step_seconds=DT,
)
CONFIG = Config(
    env=EnvConfig(env_id=ROLES.env_id),
    collection=CollectionConfig(behavior="wander", num_steps=6 * STEPS, episodes_per_unit=3),
    windows=WindowConfig(min_horizon=8, max_horizon=8, stride=2),
    network=NetworkConfig(dim=8, dim_mults=(1, 2)),
    diffusion=DiffusionConfig(num_diffusion_steps=4),
    training=TrainingConfig(num_steps=2, batch_size=8),
    planning=PlanningConfig(
        sampling=SamplingConfig(num_steps=2),
        horizon=HorizonConfig(min=8, max=8),
        controller=OwnController(kind="glide"),
    ),
)
HOVER = Task(
    name="hover",
    description="a drone that is led to a target",
    presets={"hover-smoke": Preset(config=CONFIG, observation_dim=4, action_dim=2)},
    complete_env=lambda env: dataclasses.replace(ROLES, env_id=env.env_id, env_kwargs=env.env_kwargs, task=env.task),
    protocols={
        "near": Protocol(title="Near", note="targets around the corner", env_kwargs={"reach": 0.5}),
        "far": Protocol(title="Far", env_kwargs={"reach": 3.0}),
    },
    behaviors={"wander": BehaviorPart(Wander, {"phase": 0})},
    policies={"fall": Fall},
    controllers={"glide": Glide},
    ask=ask,
    metrics={
        "miss": Metric("distance at the end", less_is_better=True, format=".2f"),
        "late_share": Metric("share of the time until the target"),
    },
    measure=measure,
    objective="miss",
    references=lambda env: (-100.0, -10.0 * env.env_kwargs.get("reach", 1.0)),
    published=lambda env, protocol: (PublishedScore("Falcon", "A paper", 77.7),) if protocol == "far" else (),
    figures=HoverFigures,
    text_map=draw_text_map,
    studies={
        "boldness": Study(description="how bold", vary={"planning.horizon.max_speed_error": Between(low=1.0, high=9.0)})
    },
    table=HoverTable,
)
EXPERIMENT = find_experiment(f"{HERE}:HOVER")
ENV = complete_env(EXPERIMENT.config.env)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> SimpleNamespace:
    """Data, a checkpoint and evaluations of it under both protocols, as a run directory has them."""
    root = tmp_path_factory.mktemp("run")
    config = dataclasses.replace(EXPERIMENT.config, env=ENV)
    data = small_runs.collect(ENV, config.collection, root / "dataset")
    checkpoint = small_runs.fit(config, data, root / "checkpoint")
    return SimpleNamespace(root=root, data=open_dataset(data), checkpoint=checkpoint, config=config)


@pytest.fixture(scope="module")
def evaluated(run) -> dict:
    """Results and recordings of six episodes of the planner under each protocol."""
    source = find_policy(run.checkpoint)
    return {
        name: evaluate_episodes(source.load(), apply_protocol(name, source.env), range(6), seed=2, num_recorded=3)
        for name in choose_protocols((), source.env)
    }


def test_an_experiment_names_the_task_and_knows_the_columns():
    assert EXPERIMENT.task is HOVER is task_of(ENV)
    assert dataclasses.replace(ROLES, task=f"{HERE}:HOVER") == ENV
    assert EXPERIMENT.preset.layout.transition_dim == 4


def test_its_behavior_collects(run):
    (first, *_), again = UnitCollector(ENV, run.config.collection).collect(1), run.data.episode_column(3, "action")
    np.testing.assert_array_equal(first.actions, again)
    assert [(c.name, c.shape) for c in run.data.manifest.extra_columns] == [("phase", ())]
    phases = run.data.episode_column(3, "phase")
    expected = -0.4 + 1.2 * (np.sin(phases[0] + np.arange(1, STEPS + 1) / 5) + 1)
    np.testing.assert_allclose(again[:, 0], expected, rtol=1e-5, atol=1e-6)
    assert run.data.env == ENV
    np.testing.assert_allclose(
        (run.data.manifest.action_low, run.data.manifest.action_high), ([-0.4] * 2, [2.0] * 2), rtol=1e-6
    )


def test_its_controller_its_wishes_and_its_measures_make_an_evaluation(evaluated):
    assert Glide.made >= 2
    assert list(evaluated) == ["near", "far"]
    for name, (results, recorded) in evaluated.items():
        env = apply_protocol(name, ENV)
        reach = env.env_kwargs["reach"]
        for result in results:
            distance = np.abs(np.array(result.goal) - result.start[:2])
            assert (distance <= reach).all()
            assert result.score == normalize_score(result.undiscounted_return, (-100.0, -10.0 * reach))
            assert result.success == (result.time_to_goal_steps is not None)
            assert list(result.metrics) == ["miss", "late_share"]
            assert (result.metrics["late_share"] is None) == (not result.success)
        for episode in recorded:
            assert np.abs(episode.plan.observations[1:, 2:]).max() <= CRUISE + 1e-6
            np.testing.assert_allclose(episode.plan.observations[-1, :2], episode.result.goal, rtol=1e-5, atol=1e-6)
            miss = np.linalg.norm(episode.observations[-1, :2] - episode.result.goal)
            assert episode.result.metrics["miss"] == pytest.approx(miss, rel=1e-5)
    assert max(r.metrics["miss"] for r in evaluated["far"][0]) > max(r.metrics["miss"] for r in evaluated["near"][0])


def test_its_policy_is_compared_with(evaluated):
    assert list(list_scripted(HOVER)) == ["random", "fall"]
    env = apply_protocol("near", ENV)
    results, _ = evaluate_episodes(list_scripted(HOVER)["fall"], env, range(6), seed=2)
    for fallen, planned in zip(results, evaluated["near"][0], strict=True):
        assert (fallen.start, fallen.goal) == (planned.start, planned.goal)
        distance = float(np.linalg.norm(np.array(fallen.goal) - fallen.start[:2]))
        assert fallen.undiscounted_return == pytest.approx(-STEPS * distance)
    assert find_policy("baseline:fall", env=ENV).record == {"baseline": "fall"}


def test_a_search_is_after_its_metric_and_varies_its_studies(evaluated):
    assert next(iter(list_studies(HOVER))) == "boldness"
    study = find_study("boldness", HOVER)
    results = [result for name in evaluated for result in evaluated[name][0]]
    summary = summarize_trial(results, study, HOVER.objective, HOVER)
    assert summary["objective"] == pytest.approx(-np.mean([result.metrics["miss"] for result in results]))
    tuned, _ = evaluate_episodes(
        list_scripted(HOVER)["fall"], apply_protocol("far", ENV), [0], seed=2, stream=Stream.TUNING
    )
    assert tuned[0].start != evaluated["far"][0][0].start


def test_tables_and_summaries_have_its_words(evaluated):
    summaries = {
        name: summarize(results, env_id=ENV.env_id, protocol=name, references=(0.0, 1.0), wall_seconds=1.0, config={})
        for name, (results, _) in evaluated.items()
    }
    assert list(summaries["near"]["metrics"])[-2:] == ["miss", "late_share"]
    assert json.loads(json.dumps(summaries, allow_nan=False)) == summaries
    header, near, far, published = format_table(summaries, ENV).splitlines()
    assert header.split()[:3] == ["protocol", "score", "95"]
    assert (near.split()[0], far.split()[0]) == ("near", "far")
    assert published.strip() == "published: Falcon 77.7"


def test_its_figures_draw_plans_rollouts_and_data(run):
    assert isinstance(make_figures(ENV), HoverFigures)
    assert isinstance(make_experiment_figures(run.config), HoverFigures)
    figure = draw_sampled_plans(load_planner(run.checkpoint), run.data, 3, np.random.default_rng(0))
    assert figure.axes[0].get_title() == "3 plans to (3, 2)"
    assert len(figure.axes[0].lines) == 3


def test_a_terminal_shows_its_map(run):
    lines = draw_coverage(run.data, 80, ASCII)
    assert lines[-1] == f"{6 * STEPS} places of {ENV.env_id}"


def test_the_page_shows_it_as_its_own(run, evaluated):
    for name, (results, recorded) in evaluated.items():
        directory = run.root / "evaluation" / name
        directory.mkdir(parents=True, exist_ok=True)
        config = {"env": dataclasses.asdict(apply_protocol(name, ENV))}
        summary = summarize(results, env_id=ENV.env_id, protocol=name, references=None, wall_seconds=1.0, config=config)
        (directory / "summary.json").write_text(json.dumps(summary))
        assert len(recorded) == 3
    assert read_run(run.root).task is HOVER
    page = re.sub(r'src="data:[^"]*"', "", write_report(run.root).read_text())
    for text in (
        "Near — targets around the corner",
        "Falcon",
        "Points are where the drone is to be.",
        "Where drones were.",
    ):
        assert text in page
    assert "maze" not in page.lower()


def test_its_table_is_made_by_the_command(tmp_path, capsys):
    assert main(["table", f"{HERE}:HOVER", "--out", str(tmp_path), "--methods", "fall"]) == 0
    out = capsys.readouterr().out
    assert "evaluate fall" in out
    assert (tmp_path / "hover.md").read_text() in out
    assert "random" not in out


def test_a_task_with_nothing_filled_in_does_it_all_too(tmp_path: Path):
    """Its name is all that it has: scored by return, acted in at random, planned for by actions, drawn as curves."""
    env = complete_env(EnvConfig(env_id="Pendulum-v1", task=f"{HERE}:EMPTY"))
    config = dataclasses.replace(
        find_experiment(f"{HERE}:EMPTY").config,
        env=env,
        collection=CollectionConfig(num_steps=80, episode_steps=40, episodes_per_unit=2),
        network=NetworkConfig(dim=8, dim_mults=(1, 2, 4)),
        training=TrainingConfig(num_steps=2, batch_size=4),
    )
    data = small_runs.collect(env, config.collection, tmp_path / "dataset")
    config = dataclasses.replace(
        config,
        planning=with_overrides(
            config.planning, {"selection.rule": "consistency", "guidance.value": None, "selection.num_candidates": 2}
        ),
    )
    checkpoint = small_runs.fit(config, data, tmp_path / "checkpoint")
    planner = load_planner(checkpoint)
    figure = draw_sampled_plans(planner, open_dataset(data), 2, np.random.default_rng(0))
    assert len(figure.axes) == 2
    env = dataclasses.replace(env, env_kwargs={"max_episode_steps": 12})
    (protocol,) = choose_protocols((), env)
    results, _ = evaluate_episodes(planner, apply_protocol(protocol, env), range(2), seed=0)
    summary = summarize(results, env_id=env.env_id, protocol=protocol, references=None, wall_seconds=1.0, config={})
    assert summary["return_mean"] == summary["score_mean"] < 0
    assert (summary["success_rate"], summary["time_to_goal_steps_mean"]) == (None, None)
    assert [result.num_plans for result in results] == [12 // config.planning.replanning.interval] * 2
    assert draw_coverage(open_dataset(data), 80, ASCII) == []  # no positions are known
    study = find_study("planner", task_of(env))
    assert summarize_trial(results, study, "return", task_of(env))["objective"] == summary["return_mean"]


EMPTY = Task(name="empty")
