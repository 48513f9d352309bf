"""Behaviors of one's own, by import path: what they may be, what they are given, and how their mistakes are told."""

import dataclasses
import textwrap

import numpy as np
import pytest

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.behaviors.random import RandomBehavior
from diffplan.behaviors.registry import list_columns, make_behavior
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.errors import ConfigError
from diffplan.seeding import Stream, make_generator
from diffplan.tasks.contracts import BehaviorContext, BehaviorPart
from diffplan.tasks.task import Task

PENDULUM = EnvConfig(env_id="Pendulum-v1")
HERE = __name__
CONTEXT = BehaviorContext(PENDULUM, np.array([-2.0]), np.array([2.0]), action_noise=0.3, max_goal_steps=20)


def collecting(behavior, **changes):
    return CollectionConfig(behavior=behavior, episode_steps=20, num_steps=120, episodes_per_unit=3, **changes)


def collect(behavior, unit=0, **changes):
    return UnitCollector(PENDULUM, collecting(behavior, **changes)).collect(unit)


def assert_same(first, second):
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.observations, two.observations)
        np.testing.assert_array_equal(one.actions, two.actions)


def drive(observations):
    return np.clip(-observations[:, 1:2] - observations[:, 2:] / 8, -2, 2)


def drive_with_noise(observations, rng):
    return np.clip(drive(observations) + rng.normal(size=(len(observations), 1)), -2, 2)


def drive_with_keyword(observations, *, rng):
    return drive_with_noise(observations, rng)


def drive_with_options(observations, gain=1.0, rng=None):
    assert gain == 1.0
    return drive_with_noise(observations, rng)


def drive_with_gain(observations, gain=0.5):
    return gain * drive(observations)


def drive_generator(observations, generator, /):
    return drive_with_noise(observations, generator)


def test_data_are_collected_by_random_actions_and_nothing_else_is_needed():
    """The default, in an environment of which nothing is known."""
    config = CollectionConfig(num_steps=400, episodes_per_unit=1)
    assert config.behavior == "random"
    manifest = make_manifest(PENDULUM, config)
    assert [column.name for column in manifest.columns] == ["observation", "action", "reward"]
    assert manifest.collection["episode_steps"] == 200  # the limit that Pendulum is registered with
    (episode,) = UnitCollector(PENDULUM, config).collect(1)
    behavior = RandomBehavior(np.array([-2.0]), np.array([2.0]))
    behavior.reset(episode.observations[:1], [make_generator(0, Stream.COLLECTION, 1, 1)])
    np.testing.assert_array_equal(episode.actions, [behavior.act(row[None])[0] for row in episode.observations[:-1]])


def test_a_function_of_observations_acts():
    for episode in collect(f"{HERE}:drive"):
        np.testing.assert_array_equal(episode.actions, drive(episode.observations[:-1]))
        assert len(episode) == 20


@pytest.mark.parametrize("name", ["drive_with_noise", "drive_with_keyword", "drive_with_options", "drive_generator"])
def test_a_function_is_given_the_generator_of_the_unit(name):
    episodes = collect(f"{HERE}:{name}", unit=1, seed=5)
    rng = make_generator(5, Stream.COLLECTION, 3, 1)  # of the unit's first episode
    observations = np.stack([episode.observations[:-1] for episode in episodes], axis=1)
    expected = np.stack([drive_with_noise(row, rng) for row in observations]).astype(np.float32)
    np.testing.assert_array_equal(np.stack([episode.actions for episode in episodes], axis=1), expected)


def test_further_arguments_keep_their_defaults():
    for episode in collect(f"{HERE}:drive_with_gain"):
        np.testing.assert_array_equal(episode.actions, 0.5 * drive(episode.observations[:-1]))


class Driver:
    """Needs nothing; pushes harder from step to step, so that what is left of an episode would show in the next."""

    COLUMNS = {"effort": 1, "step": 0}  # noqa: RUF012

    def reset(self, observations, generators):
        self.step, self.generators = 0, generators

    def act(self, observations):
        self.step += 1
        noise = np.array([generator.normal() for generator in self.generators])
        self.actions = np.clip(0.1 * self.step * drive(observations) + noise[:, None], -2, 2)
        return self.actions

    def columns(self):
        return {"effort": np.abs(self.actions), "step": np.full(len(self.actions), self.step)}


class Bounded:
    """Takes the context, and leaves `columns` out."""

    def __init__(self, context):
        self.low, self.high, self.noise = context.action_low, context.action_high, context.action_noise
        assert context.env.env_id == "Pendulum-v1"
        assert context.max_goal_steps == 20

    def reset(self, observations, generators):
        pass

    def act(self, observations):
        return np.where(observations[:, 1:2] > 0, self.low, self.high) * self.noise


@dataclasses.dataclass
class Steady:
    """Has arguments of its own, none of which is needed."""

    action: float = 0.25

    def reset(self, observations, generators):
        pass

    def act(self, observations):
        return np.full((len(observations), 1), self.action)


class OptionalContext(Bounded):
    def __init__(self, gain=3.0, context=None):
        assert gain == 3.0
        super().__init__(context)


STEADY = Steady(0.75)
PART = BehaviorPart(lambda context: Steady(float(context.action_high[0])))


@pytest.mark.parametrize("behavior", ["drive_with_noise", "Driver", "random"])
def test_content_is_a_function_of_the_specification(behavior):
    """Whatever a collector did before; another unit and another seed are something else."""
    behavior = behavior if behavior == "random" else f"{HERE}:{behavior}"
    collector = UnitCollector(PENDULUM, collecting(behavior))
    first, second = collector.collect(0), collector.collect(1)
    assert_same(collector.collect(0), first)
    assert_same(UnitCollector(PENDULUM, collecting(behavior)).collect(1), second)
    for others in (second, collect(behavior, seed=1)):
        assert not np.array_equal(first[0].actions, others[0].actions)


def test_episodes_of_a_class_do_not_depend_on_their_unit():
    """It draws from the generator of each environment, unlike a function, whose `rng` is that of the unit."""
    many = UnitCollector(PENDULUM, collecting(f"{HERE}:Driver")).collect(0)
    alone = UnitCollector(PENDULUM, dataclasses.replace(collecting(f"{HERE}:Driver"), episodes_per_unit=1))
    assert_same(many, [alone.collect(i)[0] for i in range(3)])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Bounded", lambda o: np.where(o[:, 1:2] > 0, -2.0, 2.0) * 0.5),
        ("OptionalContext", lambda o: np.where(o[:, 1:2] > 0, -2.0, 2.0) * 0.5),
        ("Steady", lambda o: np.full((len(o), 1), 0.25)),
        ("STEADY", lambda o: np.full((len(o), 1), 0.75)),
        ("PART", lambda o: np.full((len(o), 1), 2.0)),
    ],
)
def test_classes_objects_and_parts_act(name, expected):
    for episode in collect(f"{HERE}:{name}"):
        np.testing.assert_array_equal(episode.actions, expected(episode.observations[:-1]).astype(np.float32))
        assert episode.columns == {}


def test_columns_of_a_class_are_written_and_read(tmp_path):
    collection = collecting(f"{HERE}:Driver")
    manifest = create_dataset(tmp_path, make_manifest(PENDULUM, collection))
    assert [(c.name, c.shape) for c in manifest.extra_columns] == [("effort", (1,)), ("step", ())]
    for unit in range(collection.num_units):
        write_unit(tmp_path, manifest, unit, UnitCollector(PENDULUM, collection).collect(unit))
    dataset = open_dataset(tmp_path)
    for i in range(len(dataset.episodes)):
        np.testing.assert_array_equal(dataset.episode_column(i, "step"), np.arange(1, 21))
        np.testing.assert_array_equal(dataset.episode_column(i, "effort"), np.abs(dataset.episode_column(i, "action")))


def test_a_mixture_of_import_paths_and_names():
    text = f"{HERE}:Driver:0.25,{HERE}:Steady:0.75"
    assert list_columns(text, Task(name="any")) == {"effort": 1, "step": 0}
    collection = CollectionConfig(behavior=text, episode_steps=4, num_steps=800, episodes_per_unit=200)
    episodes = UnitCollector(PENDULUM, collection).collect(0)
    steady = np.array([bool((episode.actions == 0.25).all()) for episode in episodes])
    assert steady.mean() == pytest.approx(0.75, abs=0.08)
    for episode, is_steady in zip(episodes, steady, strict=True):
        assert np.isnan(episode.columns["effort"]).all() == np.isnan(episode.columns["step"]).all() == is_steady
        assert (episode.columns["effort"].shape, episode.columns["step"].shape) == ((4, 1), (4,))


# Mistakes, each of which is told in one line that names the behavior.


def drive_nothing():
    return 0.0


def drive_three(observations, rng, more):
    return observations


def drive_flat(observations):
    return np.zeros(len(observations))


def drive_one(observations):
    return np.zeros((1, 2))


def drive_text(observations):
    return [["left"]] * len(observations)


def drive_nan(observations):
    return np.full((len(observations), 1), np.nan)


def drive_infinity(observations):
    return np.full((len(observations), 1), np.inf)


def drive_into_a_wall(observations):
    raise RuntimeError("bump\nand more\nlines")


class NoAct:
    def reset(self, observations, generators):
        pass


class BadReset(Steady):
    def reset(self, observations, generators):
        raise KeyError("seat")


class BadMake(Steady):
    def __init__(self):
        raise OSError("no fuel\nat all")


class NeedsMore(Steady):
    def __init__(self, context, model):
        pass


class Silent(Steady):
    COLUMNS = {"goal": 2}  # noqa: RUF012


class Talkative(Steady):
    def columns(self):
        return {"goal": np.zeros((1, 2))}


class WrongSize(Silent):
    def columns(self):
        return {"goal": np.zeros((1, 3))}


class BadColumns(Steady):
    def columns(self):
        raise IndexError("columns\nare out")


class ColumnsAsList(Steady):
    COLUMNS = ["goal"]  # noqa: RUF012


class ColumnsOfText(Steady):
    COLUMNS = {"goal": "two"}  # noqa: RUF012


class OtherGoal(Steady):
    COLUMNS = {"goal": 3}  # noqa: RUF012


NUMBER = 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("drive_nothing", ["expected a function of observations", "got one of ()"]),
        ("drive_three", ["or of observations and rng", "(observations, rng, more)"]),
        ("drive_flat", ["expected actions of shape (1, 1)", "got (1,)"]),
        ("drive_one", ["expected actions of shape (1, 1)", "got (1, 2)"]),
        ("drive_text", ["act failed", "ValueError", "left"]),
        ("drive_nan", ["expected finite actions", "NaN"]),
        ("drive_infinity", ["expected finite actions"]),
        ("drive_into_a_wall", ["act failed: RuntimeError: bump"]),
        ("NoAct", ["class with reset and act", "got a class without"]),
        ("NUMBER", ["class with reset and act", "got int"]),
        ("BadReset", ["reset failed: KeyError: 'seat'"]),
        ("BadMake", ["OSError: no fuel"]),
        ("NeedsMore", ["made from nothing or from a BehaviorContext", "model"]),
        ("Silent", ["expected columns {'goal': (1, 2)}", "got none"]),
        ("Talkative", ["COLUMNS", "got {'goal': (1, 2)}"]),
        ("WrongSize", ["expected columns {'goal': (1, 2)}", "got {'goal': (1, 3)}"]),
        ("BadColumns", ["columns failed: IndexError: columns"]),
        ("ColumnsAsList", ["expected COLUMNS", "got ['goal']"]),
        ("ColumnsOfText", ["expected COLUMNS", "'two'"]),
        ("missing", ["expected 'missing' in", "got a module without it"]),
    ],
)
def test_a_mistake_is_one_clear_line_before_anything_is_collected(name, words):
    with pytest.raises(ConfigError) as caught:
        make_manifest(PENDULUM, collecting(f"{HERE}:{name}"))
    message = str(caught.value)
    assert "\n" not in message
    for word in ["collection.behavior", f"{HERE}", *words]:
        assert word in message


def test_columns_of_one_name_have_one_size():
    with pytest.raises(ConfigError, match=r":OtherGoal: expected column 'goal' of size 2.* got size 3"):
        make_behavior(f"{HERE}:Silent,{HERE}:OtherGoal", CONTEXT)


class Late(Steady):
    """Goes wrong in the middle of an episode, where a rehearsal of one step does not come."""

    def reset(self, observations, generators):
        self.left = 10

    def act(self, observations):
        self.left -= 1
        return np.zeros((len(observations), 1)) if self.left else np.zeros((len(observations), 2))


def test_a_mistake_on_the_way_is_one_clear_line_too():
    collection = collecting(f"{HERE}:Late")
    make_manifest(PENDULUM, collection)
    with pytest.raises(ConfigError, match=r":Late: expected actions of shape \(3, 1\), got \(3, 2\)"):
        UnitCollector(PENDULUM, collection).collect(0)


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("no_such_module:drive", None, ["no_such_module", "run the command in the directory"]),
        ("no_such_package.module:drive", None, ["no_such_package.module", "install its package"]),
        ("behavior_that_raises:drive", "raise RuntimeError('oh\\nno')", ["importing", "RuntimeError: oh"]),
        ("behavior_with_a_slip:drive", "def drive(o:\n", ["importing behavior_with_a_slip", "SyntaxError"]),
        ("behavior_that_needs_more:drive", "import no_such_thing", ["no_such_thing"]),
        ("my module:drive", None, ["expected one of random"]),
        ("my_module:", None, ["expected one of random"]),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_one_clear_line(path, content, words, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    if content is not None:
        (tmp_path / f"{path.partition(':')[0]}.py").write_text(content)
    with pytest.raises(ConfigError) as caught:
        make_manifest(PENDULUM, collecting(path))
    assert "\n" not in str(caught.value)
    for word in ["collection.behavior", *words]:
        assert word in str(caught.value)


def test_modules_are_found_in_the_working_directory_first(tmp_path, monkeypatch):
    """Also in the processes that are started from here, which inherit PYTHONPATH."""
    for name in ("installed", "work"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "found_behavior.py").write_text(
            textwrap.dedent(f"""
            def drive(observations):
                return observations[:, :1] * {1.0 if name == "work" else 0.5}
            """)
        )
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    monkeypatch.chdir(tmp_path / "work")
    for episode in collect("found_behavior:drive"):
        np.testing.assert_array_equal(episode.actions, episode.observations[:-1, :1])
