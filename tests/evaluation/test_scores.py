import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from diffplan.config import EnvConfig
from diffplan.errors import ConfigError
from diffplan.evaluation.protocol import apply_protocol, choose_protocol, choose_protocols, list_protocols
from diffplan.evaluation.scores import (
    NUM_BOOTSTRAPPED,
    EpisodeResult,
    compute_interval,
    compute_rate_interval,
    normalize_score,
    results_to_rows,
    summarize,
)
from diffplan.evaluation.table import format_table
from diffplan.tasks.maze2d.published import get_published_scores
from diffplan.tasks.registry import task_of

CONTRACT = {
    "env_id",
    "protocol",
    "episodes",
    "references",
    "score_mean",
    "score_stderr",
    "score_ci95",
    "score_iqm",
    "return_mean",
    "success_rate",
    "success_ci95",
    "time_to_goal_steps_mean",
    "metrics",
    "plan_seconds_mean",
    "plans_per_second",
    "wall_seconds",
    "config",
}


GENERAL = {"return", "score", "length", "success", "time_to_goal_steps", "plan_seconds"}
MAZE = EnvConfig(env_id="diffplan/Maze2D-Large-v1")


def make_result(score=0.0, time_to_goal_steps=None, num_plans=1, plan_seconds=0.5, **changes):
    result = EpisodeResult(
        episode=0,
        seed=1,
        goal=[1.0, 1.0],
        start=[3.0, 1.0, 0.0, 0.0],
        undiscounted_return=2 * score,
        score=score,
        success=time_to_goal_steps is not None,
        time_to_goal_steps=time_to_goal_steps,
        length=300,
        horizon=8,
        plan_speed_error=0.1,
        num_plans=num_plans,
        plan_seconds=plan_seconds,
    )
    return dataclasses.replace(result, **changes)


def make_goal_free_result(score, **metrics):
    """Of an environment without goals, acted in by a policy without plans."""
    return make_result(
        score,
        num_plans=0,
        plan_seconds=0.0,
        goal=None,
        success=None,
        horizon=None,
        plan_speed_error=None,
        metrics=metrics,
    )


def summarize_all(results, references=None):
    return summarize(
        results, env_id="some/Env-v1", protocol="maze2d", references=references, wall_seconds=3.0, config={"a": 1}
    )


@pytest.mark.parametrize(
    ("maze", "undiscounted_return", "score"),
    [
        ((23.85, 161.86), 23.85, 0.0),
        ((23.85, 161.86), 161.86, 100.0),
        ((6.7, 273.99), 335.46, 100 * (335.46 - 6.7) / 267.29),
        ((13.13, 277.39), 0.0, -1313 / 264.26),
        (None, 17.5, 17.5),
    ],
)
def test_score_is_linear_between_random_and_expert(maze, undiscounted_return, score):
    assert normalize_score(undiscounted_return, maze) == pytest.approx(score)


def test_interval_of_many_values_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(50.0, 10.0, size=400)
    low, high = compute_interval(values.tolist())
    half_width = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half_width, values.mean() + half_width), abs=0.1 * half_width)


@pytest.mark.parametrize("num", [2, 3, 5, 10, 20, 29, 30, 50, 100])
def test_interval_covers_the_mean_as_often_as_it_says(num):
    generator = np.random.default_rng(num)
    covered, trials = 0, 4_000 if num < NUM_BOOTSTRAPPED else 1_000
    for _ in range(trials):
        low, high = compute_interval(generator.normal(3.0, 2.0, size=num))
        covered += low <= 3.0 <= high
    # 93 to 97 %, and three standard errors of the simulation.
    assert abs(covered / trials - 0.95) <= 0.02 + 3 * math.sqrt(0.95 * 0.05 / trials) / 2


def test_interval_follows_from_the_values():
    values = np.arange(40.0).tolist()
    assert compute_interval(values) == compute_interval(values)
    assert compute_interval(values, seed=1) != compute_interval([*values[:-1], 38.9], seed=1)


def test_interval_of_equal_values_is_a_point():
    assert compute_interval([7.0, 7.0, 7.0]) == [7.0, 7.0]


def test_one_episode_has_no_interval():
    assert compute_interval([7.0]) is None
    assert compute_rate_interval([]) is None


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("num", [1, 5, 20, 100])
def test_interval_of_a_success_rate_holds_the_rate(rate, num):
    outcomes = np.arange(num + 1)
    chances = stats.binom.pmf(outcomes, num, rate)
    covered = 0.0
    for successes, chance in zip(outcomes, chances, strict=True):
        low, high = compute_rate_interval([True] * int(successes) + [False] * int(num - successes))
        assert 0 <= low <= successes / num <= high <= 1
        assert high > low, "even where all episodes succeed or fail"
        covered += chance * (low <= rate <= high)
    assert covered >= 0.8  # at worst, next to 0 and 1, for any n; 0.95 on the average
    assert num * min(rate, 1 - rate) < 5 or covered >= 0.93


def test_summary_has_exactly_the_agreed_keys_and_is_json():
    for results in (
        [make_result(1.0), make_result(2.0, 30)],
        [make_result(3.0)],
        [make_goal_free_result(3.0)],
        [make_goal_free_result(3.0, pushed=2.0), make_goal_free_result(4.0, pushed=None)],
    ):
        summary = summarize_all(results)
        assert set(summary) == CONTRACT
        assert set(summary["metrics"]) == GENERAL | set(results[0].metrics)
        assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_summary_is_that_of_the_episodes():
    results = [
        make_result(100.0, 20, num_plans=1, plan_seconds=0.5),
        make_result(120.0, 50, num_plans=3, plan_seconds=1.5),
        make_result(20.0, None, num_plans=4, plan_seconds=2.0),
    ]
    summary = summarize_all(results)
    assert (summary["env_id"], summary["protocol"], summary["episodes"]) == ("some/Env-v1", "maze2d", 3)
    assert (summary["wall_seconds"], summary["config"]) == (3.0, {"a": 1})
    assert summary["score_mean"] == pytest.approx(80.0)
    assert summary["return_mean"] == pytest.approx(160.0)
    assert summary["score_stderr"] == pytest.approx(math.sqrt((400 + 1600 + 3600) / 2 / 3))
    assert summary["score_ci95"] == compute_interval([100.0, 120.0, 20.0])
    assert summary["success_rate"] == pytest.approx(2 / 3)
    assert summary["time_to_goal_steps_mean"] == pytest.approx(35.0)
    assert summary["plan_seconds_mean"] == pytest.approx(0.5)
    assert summary["plans_per_second"] == pytest.approx(2.0)


def test_summary_of_one_failed_episode():
    summary = summarize_all([make_result(-4.0, plan_seconds=0.0)])
    assert (summary["score_stderr"], summary["score_ci95"]) == (None, None)
    assert summary["success_ci95"] == pytest.approx([0.0, 0.7935], abs=1e-4)  # z² / (1 + z²)
    assert (summary["time_to_goal_steps_mean"], summary["plans_per_second"]) == (None, None)
    assert summary["success_rate"] == 0.0


def test_what_has_no_meaning_is_null_and_not_absent():
    summary = summarize_all([make_goal_free_result(2.0, pushed=None), make_goal_free_result(4.0, pushed=None)])
    for name in ("success_rate", "success_ci95", "time_to_goal_steps_mean", "plan_seconds_mean", "plans_per_second"):
        assert summary[name] is None
    assert summary["metrics"] == {
        "return": 6.0, "score": 3.0, "length": 300.0, "success": None, "time_to_goal_steps": None, "plan_seconds": 0.0,
        "pushed": None,
    }  # fmt: skip
    assert (summary["score_mean"], summary["score_stderr"], summary["return_mean"]) == (3.0, 1.0, 6.0)


def test_a_metric_is_the_mean_over_the_episodes_that_have_it():
    results = [make_goal_free_result(1.0, pushed=value) for value in (2.0, None, 5.0)]
    assert summarize_all(results)["metrics"]["pushed"] == 3.5


def test_summary_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one episode"):
        summarize_all([])


def test_rows_hold_every_field():
    (row,) = results_to_rows([make_result(5.0, 12)])
    assert (row["score"], row["time_to_goal_steps"], row["goal"]) == (5.0, 12, [1.0, 1.0])
    assert len(row) == 13
    (row,) = results_to_rows([make_goal_free_result(5.0, pushed=2.0, bumped=None)])
    assert (row["pushed"], row["bumped"], row["goal"], row["success"]) == (2.0, None, None, None)
    assert len(row) == 15


@pytest.mark.parametrize(
    ("maze", "protocol", "method", "score"),
    [
        ("UMaze", "maze2d", "Diffuser", 113.9),
        ("Medium", "maze2d", "Diffuser", 121.5),
        ("Large", "maze2d", "Diffuser", 123.0),
        ("UMaze", "multi2d", "Diffuser", 128.9),
        ("Medium", "multi2d", "Diffuser", 127.2),
        ("Large", "multi2d", "Diffuser", 132.1),
        ("Large", "maze2d", "IQL", 58.6),
        ("Medium", "multi2d", "MPPI", 15.4),
        ("UMaze", "maze2d", "CQL", 5.7),
    ],
)
def test_published_scores_are_found(maze, protocol, method, score):
    env = EnvConfig(env_id=f"diffplan/Maze2D-{maze}-v1")
    scores = {s.method: s for s in task_of(env).published(env, protocol)}
    assert scores[method].score == score
    assert scores[method].source == "Janner et al. 2022, Table 1"


@pytest.mark.parametrize(("protocol", "best"), [("maze2d", (144.6, 154.8, 205.2)), ("multi2d", (158.2, 170.5, 216.5))])
def test_the_best_published_scores_are_those_of_2026(protocol, best):
    for maze, score in zip(("UMaze", "Medium", "Large"), best, strict=True):
        env = EnvConfig(env_id=f"diffplan/Maze2D-{maze}-v1")
        assert max(published.score for published in task_of(env).published(env, protocol)) == score


@pytest.mark.parametrize(
    ("env_id", "protocol"),
    [
        ("diffplan/Maze2D-Open-v1", "maze2d"),
        ("diffplan/Maze2D-UMaze-v1", "other"),
        ("diffplan/Maze2D-UMaze-Dense-v1", "maze2d"),
        ("CartPole-v1", "maze2d"),
    ],
)
def test_nothing_is_published_of_other_tasks(env_id, protocol):
    env = EnvConfig(env_id=env_id)
    assert get_published_scores(env, protocol) == task_of(env).published(env, protocol) == ()


UMAZE = "diffplan/Maze2D-UMaze-v1"
LAYOUT = "#####/#GOO#/###O#/#OOO#/#####"


@pytest.mark.parametrize(
    ("env_id", "env_kwargs", "references"),
    [
        (UMAZE, {}, (23.85, 161.86)),
        (UMAZE, {"redraw_goal": True}, (23.85, 161.86)),
        (UMAZE, {"max_episode_steps": 300}, (23.85, 161.86)),
        (UMAZE, {"max_episode_steps": 100}, None),
        (UMAZE, {"reward_type": "dense"}, (68.537689, 193.66285642381482)),
        (UMAZE, {"maze": "large"}, None),  # the layout of Large with the limit of UMaze
        (UMAZE, {"maze": "eval-umaze"}, (36.63, 141.4)),
        ("diffplan/Maze2D-v1", {"maze": LAYOUT}, None),  # 800 steps
        ("diffplan/Maze2D-v1", {"maze": LAYOUT, "max_episode_steps": 300}, (23.85, 161.86)),
        ("diffplan/Maze2D-v1", {"maze": "#####/#GOO#/#O#O#/#OOO#/#####", "max_episode_steps": 300}, None),
    ],
)
def test_references_hold_for_their_maze_limit_and_reward_alone(env_id, env_kwargs, references):
    env = EnvConfig(env_id=env_id, env_kwargs=env_kwargs)
    assert task_of(env).references(env) == references
    is_published = references == (23.85, 161.86)
    assert bool(task_of(env).published(env, "maze2d")) == is_published


@pytest.mark.parametrize(("limit", "word"), [(300, "score"), (100, "return")])
def test_a_score_under_other_rules_is_a_return_and_called_so(limit, word):
    env = EnvConfig(env_id=UMAZE, env_kwargs={"max_episode_steps": limit})
    summary = summarize_all([make_result(5.0), make_result(7.0)], task_of(env).references(env))
    lines = format_table({"maze2d": summary}, env).splitlines()
    assert lines[0].split()[1] == word
    assert ("published" in "".join(lines)) == (word == "score")


def test_scores_of_a_goal_of_ones_own_are_not_compared_with_published_ones():
    summary = summarize_all([make_result(5.0), make_result(7.0)], (23.85, 161.86))
    summary["config"]["goal"] = [3.0, 1.0]
    assert "published" not in format_table({"maze2d": summary}, MAZE)


def test_protocol_adds_to_the_arguments_of_the_environment():
    env = EnvConfig(env_id="diffplan/Maze2D-UMaze-v1", env_kwargs={"reward_type": "dense"})
    assert apply_protocol("multi2d", env).env_kwargs == {"reward_type": "dense", "redraw_goal": True}
    assert apply_protocol("maze2d", env).env_kwargs == {"reward_type": "dense", "redraw_goal": False}
    assert env.env_kwargs == {"reward_type": "dense"}


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Reacher-v5", "my_module:Pushing-v0"])
def test_nothing_is_added_to_the_arguments_of_other_environments(env_id):
    env = EnvConfig(env_id=env_id, env_kwargs={"gravity": 5.0})
    assert choose_protocols((), env) == ("default",)
    assert apply_protocol("default", env) == env


def test_unknown_protocol_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"got 'multi2'.*Did you mean 'multi2d'"):
        apply_protocol("multi2", MAZE)
    with pytest.raises(ConfigError, match="protocol: expected one of default; got 'multi2d'"):
        apply_protocol("multi2d", EnvConfig(env_id="Pendulum-v1"))
    with pytest.raises(ConfigError, match="protocol: expected one of maze2d, multi2d; got 'default'"):
        choose_protocols(("maze2d", "default"), MAZE)


def test_a_protocol_may_be_left_out_where_there_is_one():
    assert choose_protocol(None, EnvConfig(env_id="Pendulum-v1")) == "default"
    assert choose_protocol("multi2d", MAZE) == "multi2d"
    assert choose_protocols((), MAZE) == ("maze2d", "multi2d")
    with pytest.raises(ConfigError, match="--protocol: expected one of maze2d, multi2d, got none"):
        choose_protocol(None, MAZE)


def test_an_experiment_on_named_data_is_evaluated_under_their_protocol_alone():
    hopper = EnvConfig(env_id="diffplan/Hopper-v4")
    assert list_protocols(hopper, ("medium",)) == ("medium",)
    assert list_protocols(hopper) == ("medium", "medium-replay", "medium-expert")
    assert choose_protocol(None, hopper, ("medium",)) == choose_protocol("medium", hopper, ("medium",)) == "medium"
    with pytest.raises(
        ConfigError, match="expected medium, the data that the policy was trained on, got medium-expert"
    ):
        choose_protocol("medium-expert", hopper, ("medium",))
    assert choose_protocol("multi2d", MAZE, ("maze2d",)) == "multi2d"  # a search may be under some of them only
    assert list_protocols(MAZE, ("maze2d",)) == ("maze2d", "multi2d")


def test_table_shows_each_protocol_and_what_was_published():
    summaries = {
        "maze2d": summarize_all([make_result(150.0, 40), make_result(140.0, 60)], (6.7, 273.99)),
        "multi2d": summarize_all([make_result(-2.0)], (6.7, 273.99)),
    }
    lines = format_table(summaries, MAZE).splitlines()
    assert len(lines) == 5
    assert all(
        text in lines[1] for text in ("maze2d", "145.0", "[81.5, 208.5]", "100.0% [34%, 100%]", "50 steps", "500.0 ms")
    )
    assert all(text in lines[2] for text in ("Diffuser 123", "HorizonFlow 205.2"))
    assert all(text in lines[3] for text in ("multi2d", "-2.0", "unknown", "0.0% [0%, 79%]", "never"))
    assert "Diffuser 132.1" in lines[4]


def test_table_of_an_environment_without_goals_shows_returns():
    summary = summarize_all([make_goal_free_result(-150.0), make_goal_free_result(-130.0)])
    lines = format_table({"default": summary}, EnvConfig(env_id="Pendulum-v1")).splitlines()
    assert lines[0].split() == ["protocol", "return", "95", "%", "interval", "steps", "plan"]
    assert len(lines) == 2
    assert all(text in lines[1] for text in ("default", "-140.0", "[-267.1, -12.9]", "300", "none"))
