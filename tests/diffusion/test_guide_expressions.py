import dataclasses
import pickle
import string
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_batches import draw_x, place, to_plans

from diffplan.diffusion.guidance import takes_lengths
from diffplan.diffusion.guide_expressions import MAX_LENGTH, parse_guide, parse_guides
from diffplan.diffusion.guides import (
    Function,
    GoalDistance,
    KeepIn,
    KeepOut,
    KeepOutBox,
    Smoothness,
    SpeedLimit,
    TargetRegion,
    WeightedSum,
)
from diffplan.errors import ConfigError, PlanningError

GOALS = torch.tensor([[0.3, -0.4], [2.0, 1.0], [-1.0, 5.0]], dtype=torch.float64)


def make_plans(horizon=5, **kwargs):
    return to_plans(draw_x(3, horizon), goals=GOALS, **kwargs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("goal_distance()", GoalDistance()),
        ("keep_out([3, 4], 0.5)", KeepOut((3.0, 4.0), 0.5)),
        (" keep_out((3, -4), radius=.5, margin=2/10)\n", KeepOut((3.0, -4.0), 0.5, margin=0.2)),
        ("keep_out(radius=1, center=[3, 4])", KeepOut((3.0, 4.0), 1.0)),
        ("keep_out_box([0, 1], [2 ** 3, 1e1])", KeepOutBox((0.0, 1.0), (8.0, 10.0))),
        ("keep_in([0, 1], 2)", KeepIn((0.0, 1.0), 2.0)),
        ("target_region([0, 1], 2, at='any')", TargetRegion((0.0, 1.0), 2.0, at="any")),
        ("speed_limit(3)", SpeedLimit(3.0)),
        ("-smoothness()", WeightedSum(((-1.0, Smoothness()),))),
        (
            "2 * (goal_distance() - smoothness() / 4) * 3 + speed_limit(1)",
            WeightedSum(((6.0, GoalDistance()), (-1.5, Smoothness()), (1.0, SpeedLimit(1.0)))),
        ),
    ],
)
def test_ready_guides(text, expected):
    assert parse_guide(text) == expected


@pytest.mark.parametrize(
    ("text", "by_hand"),
    [
        (
            "-mean(norm(position - [2, 3]))",
            lambda p: -(p.positions - torch.tensor([2.0, 3.0]).double()).norm(dim=-1).mean(dim=1),
        ),
        ("mean(position[..., 0])", lambda p: p.positions[..., 0].mean(dim=1)),
        ("max(position[:, -1])", lambda p: p.positions[:, -1].amax(dim=1)),
        ("position[:, -1, 0] / 3", lambda p: p.positions[:, -1, 0] / 3),
        ("position[:, 1:][:, 0][..., 1]", lambda p: p.positions[:, 1, 1]),
        ("min(velocity[:, ::2, -1])", lambda p: p.velocities[:, ::2, -1].amin(dim=1)),
        ("sum(observation[:, 1:3, :2] ** 2)", lambda p: p.observations[:, 1:3, :2].square().sum(dim=(1, 2))),
        (
            "-sum(square(position[:, 1:] - position[:, :-1]))",
            lambda p: -p.positions.diff(dim=1).square().sum(dim=(1, 2)),
        ),
        ("-norm(position[:, -1] - goal)", lambda p: -(p.positions[:, -1] - p.goals).norm(dim=-1)),
        ("-mean(norm(position - goal))", lambda p: -(p.positions - p.goals[:, None]).norm(dim=-1).mean(dim=1)),
        ("mean(time * norm(velocity))", lambda p: (p.times * p.velocities.norm(dim=-1)).mean(dim=1)),
        ("sum(time * position)", lambda p: (p.times[None, :, None] * p.positions).sum(dim=(1, 2))),
        ("mean(time) + 0 * mean(action)", lambda p: p.times.double().mean().expand(3)),
        ("max(time)", lambda p: p.times.double().max().expand(3)),
        (
            "mean(position - mean(position))",
            lambda p: (p.positions - p.positions.mean(dim=(1, 2), keepdim=True)).mean(dim=(1, 2)),
        ),
        (
            "mean(position / norm(position))",
            lambda p: torch.nn.functional.normalize(p.positions, dim=2).mean(dim=(1, 2)),
        ),
        ("mean(log(sqrt(square(position) + 1)))", lambda p: (p.positions**2 + 1).sqrt().log().mean(dim=(1, 2))),
        ("mean(sin(position) * exp(velocity))", lambda p: (p.positions.sin() * p.velocities.exp()).mean(dim=(1, 2))),
        ("-sum(relu(norm(velocity) - 1))", lambda p: -torch.relu(p.velocities.norm(dim=-1) - 1).sum(dim=1)),
        ("sum(clip(position, -1, 2 * 0.5))", lambda p: p.positions.clamp(-1, 1).sum(dim=(1, 2))),
        ("sum(minimum(position, velocity))", lambda p: torch.minimum(p.positions, p.velocities).sum(dim=(1, 2))),
        ("sum(maximum(position, [0, 1]))", lambda p: p.positions.maximum(torch.tensor([0.0, 1])).sum(dim=(1, 2))),
        ("sum(maximum(1, action))", lambda p: p.actions.clamp(min=1).sum(dim=(1, 2))),
        ("mean(position ** -1)", lambda p: (1 / p.positions).mean(dim=(1, 2))),
        ("+mean(-position ** 2)", lambda p: -p.positions.square().mean(dim=(1, 2))),
        (
            "-mean(norm(position - [2, 3])) + 2 * keep_out([1, 2], 0.5)",
            lambda p: (
                2 * KeepOut((1.0, 2.0), 0.5).score(p)
                - (p.positions - torch.tensor([2.0, 3.0]).double()).norm(dim=-1).mean(dim=1)
            ),
        ),
        ("3 * (mean(action) - smoothness())", lambda p: 3 * p.actions.mean(dim=(1, 2)) - 3 * Smoothness().score(p)),
    ],
)
def test_expressions_are_what_one_would_write_by_hand(text, by_hand):
    for horizon in (5, 3):  # also as many steps as plans: nothing may be matched by its place
        results = []
        for score in (parse_guide(text).score, by_hand):
            x = draw_x(3, horizon).requires_grad_(True)
            scores = score(to_plans(x, goals=GOALS))
            gradient = torch.autograd.grad(scores.sum() + 0 * x.sum(), x)[0]
            results.append((scores, gradient))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    "text",
    [
        "-mean(norm(position - goal)) + 0.1 * mean(action)",
        "sum(position[:, :, 0] * time) - max(norm(velocity))",
        "min(position[..., 1]) + mean(goal) + max(goal - position)",
        "mean(sqrt(abs(position) + 1)) - sum(maximum(velocity, 0.5)) + keep_out([1, 2], 0.5)",
        "mean(position - mean(position))",
        "mean(log(square(position) + 1))",
    ],
)
def test_plans_of_several_horizons_are_scored_in_one_batch(text):
    guide, lengths = parse_guide(text), torch.tensor([1, 5, 3])
    assert takes_lengths(guide)
    x = draw_x(3, 5).requires_grad_(True)
    inside = torch.arange(5) < lengths[:, None]
    own = x.masked_fill(~inside[:, :, None], 0.0)
    scores = guide.score(dataclasses.replace(to_plans(own, goals=GOALS), lengths=lengths))
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    assert (gradient[~inside] == 0).all()
    for i, length in enumerate(lengths.tolist()):
        alone = x[i : i + 1, :length].detach().requires_grad_(True)
        score = guide.score(to_plans(alone, goals=GOALS[i : i + 1]))
        torch.testing.assert_close(scores[i : i + 1], score)
        torch.testing.assert_close(gradient[i : i + 1, :length], torch.autograd.grad(score.sum(), alone)[0])


@pytest.mark.parametrize("text", ["mean(position[:, -1])", "mean(position[:, 1:3])", "max(position[:, 0] - goal)"])
def test_where_steps_are_picked_each_horizon_is_scored_apart(text):
    assert not takes_lengths(parse_guide(text))
    assert takes_lengths(parse_guide(text.replace("-1", ":").replace("1:3", ":").replace("0]", ":]")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected an expression such as '-mean"),
        ("mean(position", "'(' was never closed"),
        ("mean(posiion)", "got 'posiion'. Did you mean 'position'?"),
        ("men(position)", "got 'men'. Did you mean 'mean'?"),
        ("keep_out", "expected keep_out to be called, as in keep_out(...)"),
        ("position()", "expected position without (...)"),
        ("position.mean()", "got 'position.mean()'"),
        ("lambda: 0", "got 'lambda: 0'"),
        ("mean(position) @ 3", "got 'mean(position) @ 3'"),
        ("3j", "got '3j'"),
        ("[]", "got '[]'"),
        ("[position, 1]", "expected numbers in a list, got something of the plan, the number 1"),
        ("3", "expected a guide or something of the plan such as position, got the number 3"),
        ("'position'", "got the text 'position'"),
        ("mean(3)", "mean: expected something of the plan such as position, got the number 3"),
        ("sqrt(3)", "expected something of the plan such as position, alone or with numbers, got the number 3"),
        ("abs(smoothness())", "got a guide"),
        ("norm(position)", "expected one number per plan, got one for each step; take mean(...) or sum(...)"),
        ("position", "got one for each step and column"),
        ("goal + smoothness()", "got one for each column"),
        ("norm(position[..., 0])", "norm: expected something with columns such as position"),
        ("max(norm(velocity), 1)", "max: expected 1 arguments without names, got 2"),
        ("mean(x=position)", "mean: expected 1 arguments without names, got 0 and x"),
        ("mean(*position)", "got '*position'"),
        ("smoothness(**position)", "smoothness: expected arguments one by one, got **"),
        ("mean(clip(position, 2, 1))", "clip: expected two numbers in order as limits"),
        ("goal_distance() * smoothness()", "expected sums of guides and products with numbers"),
        ("goal_distance() * mean(position)", "got a guide and something of the plan"),
        ("1 / goal_distance()", "expected sums of guides and products with numbers"),
        ("goal_distance() / 0", "expected finite numbers; float division by zero"),
        ("mean(position ** 9)", "expected a number of at most 8 as exponent, got the number 9"),
        ("mean(2 ** position)", "as exponent, got something of the plan"),
        ("9**9**9", "as exponent, got the number 9"),
        ("mean(position) * 1e300**2", "expected finite numbers"),
        ("mean(position) * 1e999", "expected finite real numbers, got inf"),
        (f"mean(position) * {10**400}", "expected finite numbers"),
        ("mean(position) * (-8)**0.5", "expected finite real numbers"),
        ("mean(position[0])", "expected all plans as the first index, as in position[:, -1]"),
        ("mean(position[:, 0, 0, 0])", "expected at most 3 indices"),
        ("mean(position[..., 0, ...])", "expected at most 3 indices"),
        ("mean(mean(position)[:, 0])", "expected at most 1 indices"),
        ("mean(position[:, ::-1])", "slices of them with a positive step"),
        ("mean(position[:, 0.5])", "expected whole numbers"),
        ("mean(position[:, [0, 1]])", "expected whole numbers"),
        ("mean(position[:, 10**7])", "expected whole numbers"),
        ("3[0]", "before [...], got the number 3"),
        ("keep_out([1, 2])", "keep_out: expected center, radius, margin; radius is missing"),
        ("keep_out(1, 2)", "keep_out: expected a list [1, 2] as center, got the number 1"),
        ("keep_out([1, 2], [3])", "keep_out: expected a number as radius, got a list of numbers"),
        ("keep_out([1, 2], 1, radius=2)", "each at most once"),
        ("smoothness(1)", "smoothness: expected no arguments"),
        ("keep_out([1, 2], 1, margn=2)", "argument of keep_out: expected one of center, margin, radius; got 'margn'"),
        ("keep_out([1, 2], -1)", "keep_out: expected a radius of at least 0, got -1"),
        (
            "target_region([1, 2], 1, 'start')",
            "target_region: expected one of end, any, all as at, got the text 'start'",
        ),
        ("mean(position)\nmean(time)", "invalid syntax"),
        ("a\0b", "expected an expression"),
    ],
)
def test_what_is_no_guide_is_refused_in_one_line(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_guide(text)
    line = str(caught.value)
    assert message in line
    assert line.startswith("guide ")
    assert repr(text[:20])[1:-1] in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "text",
    [
        "-" * (MAX_LENGTH - 20) + "mean(position)",
        "(" * 900 + "mean(position)" + ")" * 900,
        "sin(" * 150 + "mean(position)" + ")" * 150,
        "position" + "[:, -position" * 120 + "]" * 120,
        "+".join(["mean(time)"] * 150),
        "mean(position)" + " " * MAX_LENGTH + "+ mean(time)",
        "[" * 199 + "1" + "]" * 199,
        "8**" * 600 + "8",
    ],
)
def test_texts_that_nest_too_deep_or_are_too_long_are_refused(text):
    with pytest.raises(ConfigError, match=r"^guide [^\n]+$") as caught:
        parse_guide(text)
    assert len(str(caught.value)) < 500


ALPHABET = string.ascii_letters + string.digits + "[](){}.,:*+-/=<>!'\"\\ \n\t_@#%&|~^;éλ\ud800\0\x0c\r"
WORDS = [
    *("position", "velocity", "goal", "time", "action", "mean(", "norm(", "max(", "clip(", "keep_out(", "smoothness()"),
    *(
        "target_region(",
        "goal_distance()",
        "[..., 0]",
        "[:, -1]",
        "[1, 2]",
        "[",
        "]",
        "(",
        ")",
        ",",
        "+",
        "-",
        "*",
        "/",
    ),
    *("**", "at='any'", "radius=", "0", "1", "2.5", "1e308", "10**8", "...", ":", "not ", " if ", " else ", "'", "\n"),
]


def outcome(text):
    """Scores of a text, or the error that users are shown; any other exception passes."""
    try:
        return parse_guide(text).score(make_plans())
    except (ConfigError, PlanningError) as error:
        return str(error)


def assert_guide_or_config_error(text):
    result = outcome(text)
    if isinstance(result, str):
        assert result.startswith("guide ")
        assert "\n" not in result
    else:
        assert result.shape == (3,)


@settings(deadline=1000)
@given(st.text(alphabet=ALPHABET, max_size=60) | st.text(max_size=30))
def test_garbage_is_refused_and_nothing_else_happens(text):
    # Nothing may be imported that happens to exist.
    if ":" not in text or any(c in text for c in "[]()"):
        assert_guide_or_config_error(text)


@settings(deadline=1000)
@given(st.lists(st.sampled_from(WORDS), max_size=12).map("".join))
def test_garbage_of_known_words_is_refused_or_scores(text):
    assert_guide_or_config_error(text)


def leaves():
    number = st.floats(-5, 5).map(lambda value: f"{value:.3g}")
    field = st.sampled_from(["position", "velocity", "observation", "action", "goal", "time", "position[:, 1:]"])
    return number | field | st.sampled_from(["[1, -2]", "position[..., 0]", "velocity[:, -1]"])


def grow(inner):
    binary = st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: "({} {} {})".format(*parts))
    names = ["mean", "sum", "max", "min", "norm", "abs", "square", "relu", "sin", "exp"]
    return binary | st.tuples(st.sampled_from(names), inner).map(lambda parts: "{}({})".format(*parts))


@settings(deadline=1000)
@given(st.recursive(leaves(), grow, max_leaves=8).map(lambda text: f"mean({text})"))
def test_well_formed_expressions_give_one_number_per_plan_or_say_why_not(text):
    assert_guide_or_config_error(text)


@pytest.mark.parametrize(
    ("text", "plans", "message"),
    [
        ("-norm(position[:, -1] - goal)", place([[[0, 0]]]), "expected plans with goal, got plans that have none"),
        ("goal_distance()", place([[[0, 0]]]), "expected plans with goals, got plans without"),
        ("mean(velocity)", place([[[0, 0]]]), "expected plans with velocity, got plans that have none"),
        ("mean(position - [1, 2, 3])", place([[[0, 0]]]), "as many columns on both sides, got 2 and 3"),
        ("mean(position - [1])", place([[[0, 0]]]), "as many columns on both sides, got 2 and 1"),
        ("mean(position[:, 1:] - position)", place([[[0, 0]] * 3]), "as many steps on both sides, got 2 and 3"),
        ("mean(position[:, 5])", place([[[0, 0]] * 3]), "expected an index within 3 steps, got 5"),
        ("mean(position[:, 5:])", place([[[0, 0]] * 3]), "expected an index within 3 steps, got [5:]"),
        ("mean(position[..., -3])", place([[[0, 0]] * 3]), "expected an index within 2 columns, got -3"),
    ],
)
def test_plans_that_lack_what_a_guide_asks_for(text, plans, message):
    with pytest.raises(PlanningError) as caught:
        parse_guide(text).score(plans)
    assert message in str(caught.value)
    assert str(caught.value).startswith("guide ")
    assert "\n" not in str(caught.value)


def test_several_texts_are_summed():
    plans = make_plans()
    texts = ["2 * goal_distance()", "mean(action)", "keep_out([1, 2], 1.5)"]
    guide = parse_guides(texts)
    torch.testing.assert_close(guide.score(plans), sum(parse_guide(text).score(plans) for text in texts))
    torch.testing.assert_close(guide.violation(plans), KeepOut((1.0, 2.0), 1.5).violation(plans))
    assert parse_guides(["smoothness()"]) == Smoothness()
    with pytest.raises(ConfigError, match=r"^guides: expected at least one, such as .*, got none$"):
        parse_guides([])


def test_guides_from_text_survive_pickling():
    guide = parse_guide("-mean(norm(position[:, 1:] - goal)) + 2 * keep_out([1, 2], 0.5) - max(clip(time, 0, 1))")
    plans = make_plans()
    assert torch.equal(pickle.loads(pickle.dumps(guide)).score(plans), guide.score(plans))


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_guides").mkdir()
    (tmp_path / "my_guides" / "__init__.py").write_text("import that_is_not_there")
    (tmp_path / "my_guides_module.py").write_text(
        """
from diffplan.diffusion.guides import KeepOut

class Nearby:
    def score(self, plans):
        return plans.actions.mean(dim=(1, 2))

class Demanding(Nearby):
    def __init__(self, strength):
        self.strength = strength

class Holder:
    nearby = Nearby()

def make_guide(radius=0.5):
    return KeepOut((1.0, 2.0), radius)

def make_function():
    return mean_action

def make_number():
    return 3

def mean_action(plans):
    return plans.actions.mean(dim=(1, 2))

def any_action(*args):
    return mean_action(*args)

def broken():
    raise KeyError("a defect of the guide")

instance = KeepOut((3.0, 4.0), 0.5)
number = 3
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_guides_module"
    sys.modules.pop("my_guides_module", None)


def test_import_paths(module):
    assert parse_guide(f"{module}:make_guide") == KeepOut((1.0, 2.0), 0.5)
    assert parse_guide(f"{module}:instance") == KeepOut((3.0, 4.0), 0.5)
    plans = make_plans()
    for name in ("Nearby", "Holder.nearby", "mean_action", "make_function", "any_action"):
        guide = parse_guide(f" {module}:{name} ")
        assert torch.equal(guide.score(plans), plans.actions.mean(dim=(1, 2)))
        assert isinstance(guide, Function) == (name not in ("Nearby", "Holder.nearby"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "no_such_module_here:make",
            "cannot import no_such_module_here .*; install it or add its folder to PYTHONPATH",
        ),
        ("my_guides:make", "cannot import my_guides .*that_is_not_there.*; install it or"),
        ("my_guides_module:mke_guide", "no 'mke_guide' in my_guides_module; did you mean 'make_guide'?"),
        ("my_guides_module:zzzzzz", "no 'zzzzzz' in my_guides_module; define it there"),
        ("my_guides_module:Holder.nerby", "no 'nerby' in Holder; did you mean 'nearby'?"),
        ("my_guides_module:Demanding", "Demanding needs arguments; name a function that makes one"),
        ("my_guides_module:number", "expected an object with `score` or a function of plans, got int"),
        ("my_guides_module:make_number", "expected an object with `score` or a function of plans, got int"),
    ],
)
@pytest.mark.usefixtures("module")
def test_import_paths_of_no_guide_are_refused(path, message):
    with pytest.raises(ConfigError, match=rf"^guide '{path}': .*{message}"):
        parse_guide(path)


def test_defects_of_imported_guides_keep_their_traceback(module):
    with pytest.raises(KeyError, match="a defect of the guide"):
        parse_guide(f"{module}:broken")
