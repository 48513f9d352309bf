"""The space of a study around an experiment: distributions that always hold the experiment's own values."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from diffplan.config import Config, config_to_dict, with_overrides
from diffplan.config.kinds import list_names, list_unions
from diffplan.config.study import Among, Between, Scaled, Study
from diffplan.errors import ConfigError, DiffplanError


def make_space(
    study: Study, config: Config, check: Callable[[Config], object] = lambda config: None
) -> dict[str, BaseDistribution]:
    """The search space of a study in an experiment, by dotted names of the config.

    Args:
        study: what is varied.
        config: the experiment; its own values are always in the space.
        check: raises a `DiffplanError` for an invalid experiment. Choices that it refuses, each by itself, are left
            out.

    Raises:
        ConfigError: an unknown field, or one that cannot have any of its values.
    """
    own = read_own_values(study, config)
    for name in study.vary:
        if name not in own:
            warnings.warn(
                f"{name}: left out of the search, because the experiment has another kind of it", stacklevel=2
            )
    for name in own:
        for field in study.vary[name].also:
            _read_field(config, field)
    if not own:
        raise ConfigError(
            f"vary: expected a field that the experiment has, got only fields of other kinds: {', '.join(study.vary)}"
        )
    return {name: _make_distribution(name, own[name], study, config, check) for name in own}


def read_own_values(study: Study, config: Config) -> dict[str, Any]:
    """The experiment's own values of the varied fields, by dotted names.

    A study suits experiments of every kind: fields of another kind of controller or replanning are left out.
    """
    return {name: _read_field(config, name) for name in study.vary if not _is_of_another_kind(name, config)}


def apply_params(study: Study, config: Config, params: dict[str, Any]) -> Config:
    """The experiment with the values of a trial, also in the fields that take the same values.

    Raises:
        ConfigError: values that do not go together.
    """
    return with_overrides(config, list_overrides(study, params))


def list_overrides(study: Study, params: dict[str, Any]) -> dict[str, Any]:
    """Every field that a trial sets, by dotted names."""
    return {field: value for name, value in params.items() for field in (name, *study.vary[name].also)}


def _is_of_another_kind(dotted: str, config: Config) -> bool:
    """Whether the experiment has another kind of a section than the one that has this field."""
    prefix, _, name = dotted.rpartition(".")
    members = list_unions(Config).get(prefix, ())
    return any(name in list_names(member) for member in members) and name not in _read_values(config, prefix)


def _read_values(config: Config, prefix: str) -> dict[str, Any]:
    return functools.reduce(dict.__getitem__, prefix.split("."), config_to_dict(config))


def _read_field(config: Config, dotted: str) -> Any:
    node: Any = config_to_dict(config)
    for name in dotted.split("."):
        if not isinstance(node, dict) or name not in node:
            with_overrides(config, {dotted: None})  # raises, with the nearest name
        node = node[name]
    if dotted in list_unions(Config):
        raise ConfigError(f"{dotted}: expected a field to search, got a section; {dotted}.kind says which one it is")
    return node


def _make_distribution(
    name: str, own: Any, study: Study, config: Config, check: Callable[[Config], object]
) -> BaseDistribution:
    values = study.vary[name]
    if isinstance(values, Between):
        if isinstance(own, bool) or not isinstance(own, int | float):
            raise ConfigError(f"{name}: expected a number to search between others, got {own!r}; use `among`")
        low, high = float(min(values.low, own)), float(max(values.high, own))
        for value in (low, low + (high - low) / math.pi, high):
            with_overrides(config, list_overrides(study, {name: value}))  # raises here what would in trials
        return FloatDistribution(low, high, log=values.log and low > 0)
    choices = _list_choices(name, own, values)
    # A kind is possible if it has the fields of its section that are varied too.
    section = name.removesuffix("kind") if name.endswith(".kind") else None
    varied = read_own_values(study, config)
    beside = {
        field: value for field, value in varied.items() if section and field.startswith(section) and field != name
    }
    return CategoricalDistribution(
        [c for c in choices if c == own or _is_possible(study, config, {name: c, **beside}, check)]
    )


def _list_choices(name: str, own: Any, values: Among | Scaled) -> list[Any]:
    if isinstance(values, Scaled):
        if isinstance(own, bool) or not isinstance(own, int):
            raise ConfigError(f"{name}: expected a whole number to scale, got {own!r}; use `among`")
        scaled = {max(round(own * share / values.multiple), 1) * values.multiple for share in values.shares}
        return sorted({*scaled, own})
    if not isinstance(own, bool | int | float | str | None):
        raise ConfigError(f"{name}: expected a number, a word or true/false to search, got {own!r}")
    choices = list(dict.fromkeys([*values.among, own]))
    is_ordered = all(isinstance(choice, int | float) for choice in choices)
    return sorted(choices) if is_ordered else choices


def _is_possible(study: Study, config: Config, params: dict[str, Any], check: Callable[[Config], object]) -> bool:
    try:
        changed = apply_params(study, config, params)
        check(changed)
    except DiffplanError:
        return False
    return changed.planning.sampling.num_steps <= changed.diffusion.num_diffusion_steps
