"""The commands: parse arguments into configs, call the cluster layer, print what came out."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.conf import Positional, arg

from diffplan.config import (
    CollectionConfig,
    Config,
    DiffusionConfig,
    EnvConfig,
    NetworkConfig,
    PlanningConfig,
    TrainingConfig,
    WindowConfig,
)
from diffplan.errors import ConfigError
from diffplan.evaluation.protocol import EPISODES_PER_UNIT
from diffplan.tasks.registry import complete_env, get_preset, list_presets
from diffplan.terminal import format_bytes

T = TypeVar("T")
_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _json_object(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """Dicts of JSON values, such as `--env.env_kwargs '{"size": 3}'`."""
    if info.type != dict[str, Any]:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda texts: _decode_object(texts[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    )


def _decode_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object such as {{}}, got {text}")
    return value


@dataclasses.dataclass(kw_only=True)
class CollectArguments:
    """Roll out an environment with Ray actors into a dataset."""

    out: str
    """Directory or URL of the dataset."""
    env: EnvConfig
    collection: Annotated[CollectionConfig, arg(name="")]
    num_workers: int | None = None
    """Actors, one CPU each; as many as there are CPUs if not given."""
    resume: bool = False
    """Go on with a dataset that was interrupted."""


@dataclasses.dataclass(kw_only=True)
class TrainArguments:
    """Fit a diffuser with Ray Train; `diffplan train --list` shows the presets."""

    data: str
    """Directory or URL of the dataset."""
    out: str
    """Directory or URL of the checkpoint."""
    env: EnvConfig
    windows: WindowConfig
    network: NetworkConfig
    diffusion: DiffusionConfig
    training: TrainingConfig
    planning: PlanningConfig
    num_workers: int = 1
    """Data-parallel workers."""
    min_workers: int | None = None
    """Fewest workers to start or go on with while the cluster has no room for all; waits for all if not given."""
    cpus_per_worker: int | None = None
    """CPUs of each worker; shares those of the cluster if not given."""
    use_gpu: bool | None = None
    """Whether each worker has a GPU, which is waited for where the cluster adds nodes on demand; if there are enough
    GPUs now if not given."""
    tensorboard: str | None = None
    """Directory or URL of TensorBoard files; OUT/tensorboard if not given."""
    verify_on_read: bool = False
    """Compare all data with their checksums before training sees them."""
    resume: bool = False
    """Go on with a run that was interrupted."""
    dry_run: bool = False
    """Show what the run would cost, measured in a few steps, and write nothing."""


@dataclasses.dataclass(kw_only=True)
class EvaluateArguments:
    """Score a planner, or what it is compared with, in parallel actors."""

    policy: Positional[str]
    """Directory or URL of a checkpoint, a planner that comes with a task (pretrained:NAME), or a
    baseline such as baseline:random."""
    out: str
    """Directory or URL of the results."""
    protocol: str | None = None
    """Protocol of the task; needed where it has several."""
    episodes: int = 100
    """Number of episodes."""
    seed: int = 0
    """Seed of the episodes; they are never those of a search."""
    goal: tuple[float, ...] | None = None
    """A position that every episode must reach, in place of the protocol's goal."""
    env_id: str | None = None
    """The environment, a Gymnasium id; that of the checkpoint if not given."""
    settings: str | None = None
    """Path or URL of planner settings, such as the best.json of a search; those of the checkpoint if not given."""
    num_workers: int | None = None
    """Actors that run environments, one CPU each; as many as there are CPUs left if not given."""
    num_planners: int | None = None
    """Actors that plan for all of them; one for each GPU if not given. With 0 each plans for itself."""
    episodes_per_unit: int = EPISODES_PER_UNIT
    """Episodes that an actor evaluates at once; as much a part of what is evaluated as the seed. With more actors than
    units, some have nothing to do."""
    resume: bool = False
    """Go on with an evaluation that was interrupted."""


@dataclasses.dataclass(kw_only=True)
class ReportArguments:
    """Write the report page of a run."""

    run: Positional[str]
    """Directory or URL of the run."""


@dataclasses.dataclass(kw_only=True)
class PipelineArguments:
    """Collect, train, search, evaluate and report in one run directory."""

    config: Annotated[Config, arg(name="")]
    out: str | None = None
    """Directory or URL of the run; a new one under runs/ if not given, which runs/latest then points at."""
    episodes: int = 100
    """Evaluation episodes of each protocol."""
    seed: int = 0
    """Seed of the evaluation episodes."""
    num_workers: int | None = None
    """Actors of collection and evaluation; as many as there are CPUs if not given."""
    use_gpu: bool | None = None
    """As that of train."""
    num_plans: int = 40_000
    """Plans that the calibration learns from."""
    resume: bool = False
    """Go on with the run at --out, from the stage that was interrupted."""


def parse_collect(arguments: list[str]) -> CollectArguments:
    """The arguments of `diffplan collect`."""
    preset, arguments = _take_preset("collect", arguments)
    default = {"env": preset.env, "collection": preset.collection}
    return parse(CollectArguments, arguments, "collect PRESET", default)


def collect(arguments: list[str]) -> None:
    """`diffplan collect`."""
    parsed = parse_collect(arguments)
    from diffplan.cluster.collect import collect as collect_on_cluster

    dataset = collect_on_cluster(
        parsed.env, parsed.collection, parsed.out, num_workers=parsed.num_workers, resume=parsed.resume
    )
    size = format_bytes(dataset.num_bytes)
    show(f"{parsed.out}: {dataset.num_steps:,} steps in {len(dataset.episodes):,} episodes, {size}")


def parse_train(arguments: list[str]) -> tuple[TrainArguments, Config]:
    """The arguments of `diffplan train`, and the experiment that they and the preset make."""
    preset, arguments = _take_preset("train", arguments)
    sections = ("env", "windows", "network", "diffusion", "training", "planning")
    parsed = parse(TrainArguments, arguments, "train PRESET", {name: getattr(preset, name) for name in sections})
    return parsed, dataclasses.replace(preset, **{section: getattr(parsed, section) for section in sections})


def train(arguments: list[str]) -> None:
    """`diffplan train`."""
    if "--list" in arguments:
        if arguments != ["--list"]:
            others = " ".join(argument for argument in arguments if argument != "--list")
            raise ConfigError(f"train --list: expected nothing beside it, got {others}")
        from diffplan.training_commands import describe_presets

        show("\n".join(describe_presets()))
        return
    parsed, config = parse_train(arguments)
    if parsed.dry_run:
        from diffplan.training_commands import describe_cost

        show("\n".join(describe_cost(arguments[0], config, parsed.data, parsed.cpus_per_worker)))
        return
    from diffplan.cluster.train import train_on_cluster

    out = train_on_cluster(
        config,
        parsed.data,
        parsed.out,
        num_workers=parsed.num_workers,
        min_workers=parsed.min_workers,
        cpus_per_worker=parsed.cpus_per_worker,
        use_gpu=parsed.use_gpu,
        resume=parsed.resume,
        tensorboard=parsed.tensorboard,
        verify_on_read=parsed.verify_on_read,
    )
    show(f"checkpoint: {out}")


def parse_evaluate(arguments: list[str]) -> EvaluateArguments:
    """The arguments of `diffplan evaluate`."""
    return parse(EvaluateArguments, arguments, "evaluate")


def evaluate(arguments: list[str]) -> None:
    """`diffplan evaluate`."""
    parsed = parse_evaluate(arguments)
    from diffplan.cluster.evaluate import evaluate as evaluate_on_cluster
    from diffplan.evaluation.sources import find_policy
    from diffplan.evaluation.table import format_table
    from diffplan.planning.settings import load_settings

    source = find_policy(
        parsed.policy,
        env=None if parsed.env_id is None else complete_env(EnvConfig(env_id=parsed.env_id)),
        settings=None if parsed.settings is None else load_settings(parsed.settings),
    )
    summary = evaluate_on_cluster(
        source,
        parsed.out,
        protocol=parsed.protocol,
        episodes=parsed.episodes,
        seed=parsed.seed,
        goal=parsed.goal,
        num_workers=parsed.num_workers,
        num_planners=parsed.num_planners,
        episodes_per_unit=parsed.episodes_per_unit,
        resume=parsed.resume,
    )
    show(format_table({summary["protocol"]: summary}, source.env))
    show(f"summary: {parsed.out}/summary.json")


def report(arguments: list[str]) -> None:
    """`diffplan report`."""
    parsed = parse(ReportArguments, arguments, "report")
    from diffplan.report.page import write_report

    show(f"report: {write_report(parsed.run)}")


def parse_pipeline(arguments: list[str]) -> PipelineArguments:
    """The arguments of `diffplan pipeline`."""
    preset, arguments = _take_preset("pipeline", arguments)
    parsed = parse(PipelineArguments, arguments, "pipeline PRESET", {"config": preset})
    if parsed.resume and parsed.out is None:
        raise ConfigError("--resume: expected --out DIR, the run to go on with, got none")
    if parsed.num_plans < 1:
        raise ConfigError(f"--num_plans: expected at least 1, got {parsed.num_plans}")
    return parsed


def pipeline(arguments: list[str]) -> None:
    """`diffplan pipeline`."""
    command = " ".join(["diffplan", "pipeline", *arguments])
    name = arguments[0] if arguments else ""
    parsed = parse_pipeline(arguments)
    from diffplan.cluster.pipeline import new_run_directory, point_latest, run_pipeline
    from diffplan.evaluation.table import format_table

    run = parsed.out or str(new_run_directory("runs", name))
    summaries = run_pipeline(
        parsed.config,
        run,
        preset=name,
        command=command,
        episodes=parsed.episodes,
        seed=parsed.seed,
        num_workers=parsed.num_workers,
        use_gpu=parsed.use_gpu,
        num_plans=parsed.num_plans,
        resume=parsed.resume,
        announce=lambda line: show(line, flush=True),
    )
    if parsed.out is None:
        point_latest(Path(run))
    show("\n" + format_table(summaries, parsed.config.env))
    show(f"\nreport: {run}/report.html")


def data(arguments: list[str]) -> None:
    """`diffplan data`."""
    from diffplan.data_commands import run

    run(arguments)


def _take_preset(command: str, arguments: list[str]) -> tuple[Config, list[str]]:
    """The preset named first, and the other arguments."""
    if not arguments or arguments[0] in ("-h", "--help"):
        if arguments:  # show the arguments with some preset's defaults
            return get_preset(list_presets()[0]), ["--help"]
        raise ConfigError(
            f"{command}: expected a preset or a task first, got nothing; `diffplan train --list` shows them"
        )
    return get_preset(arguments[0]), arguments[1:]


def parse(cls: type[T], arguments: Sequence[str], name: str, default: dict[str, Any] | None = None) -> T:
    """Parse arguments; a bad one ends the program with a message and code 2, as argparse does."""
    given = default or {}
    missing = {f.name: tyro.MISSING for f in dataclasses.fields(cls) if f.name not in given and _is_required(f)}  # type: ignore[arg-type]
    return tyro.cli(
        cls,
        args=list(arguments),
        default=cls(**given, **missing),
        prog=f"diffplan {name}",
        use_underscores=True,
        registry=_REGISTRY,
    )


def _is_required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def show(text: str, flush: bool = True) -> None:
    """Print to the standard output; what it cannot encode becomes `?`."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    if flush:
        sys.stdout.flush()
