"""Train a policy in its environment with RLlib's soft actor-critic, and keep its replay buffer as a dataset.

```
<out>/policy.npz                 the policy after the last step; a behavior `policy:<out>/policy.npz`
      snapshots/00010000.npz …   the policy after each round
      dataset/                   every step of the training, a unit for each round
      training.json              returns of the episodes of each round, and the settings
      state.pt                   to go on from
```

Losses, target networks, optimizers and networks are RLlib's. Environments are stepped and batches are drawn here:
RLlib's own loop keeps its buffer in memory, and its sampler is slower than the batches of environments.

All random numbers of a round come from the seed and the number of the round, and environments start anew with it. So a
training that was interrupted goes on with the same numbers from the last round, and no step is kept twice.
"""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffplan.behaviors.collection import complete_collection, start_manifest
from diffplan.cluster.baselines.learner import MODULE, build_learner, copy_policy, update_learner
from diffplan.cluster.baselines.replay import Buffer, RunningEpisodes, Steps
from diffplan.config import CollectionConfig, EnvConfig, config_to_dict
from diffplan.config.online_rl import SACSettings
from diffplan.data.format.dataset import open_dataset, write_snapshot
from diffplan.data.format.manifest import Manifest
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.environments import make_vector_env
from diffplan.errors import CheckpointError, ConfigError
from diffplan.files import MAX_ARRAYS_BYTES, read_file
from diffplan.runs.progress import Progress
from diffplan.seeding import Stream, make_generator, make_seed
from diffplan.storage.opening import open_store

POLICY, SNAPSHOTS, DATASET, RECORD, STATE = "policy.npz", "snapshots", "dataset", "training.json", "state.pt"
BEHAVIOR = "sac"
"""Name of the behavior in the dataset."""


def train_online(
    env: EnvConfig,
    out: str | Path,
    *,
    num_steps: int,
    settings: SACSettings | None = None,
    seed: int = 0,
    resume: bool = False,
) -> Path:
    """Train a policy by soft actor-critic.

    Args:
        env: the environment; its observations and actions are vectors, and actions are bounded.
        out: new directory, or that of an interrupted training.
        num_steps: environment steps.
        settings: of the algorithm; the defaults if None.
        seed: of everything random.
        resume: go on with the training in `out`, from its last round.

    Returns:
        Path of the policy.

    Raises:
        ConfigError: an environment that cannot be trained in; a training in `out` without `resume`, or another one.
        CheckpointError: the state in `out` is damaged.
    """
    settings = SACSettings() if settings is None else settings
    if num_steps < 1:
        raise ConfigError(f"num_steps: expected at least 1, got {num_steps}")
    out = Path(out).absolute()
    with torch.random.fork_rng(devices=[]):
        trainer = OnlineTrainer(env, out, settings=settings, seed=seed, resume=resume)
        with Progress(BEHAVIOR, num_steps, "steps", initial=min(trainer.num_steps, num_steps)) as progress:
            while trainer.num_steps < num_steps:
                trainer.run_round(min(settings.round_steps, num_steps - trainer.num_steps), progress)
        return trainer.finish()


class OnlineTrainer:
    """Soft actor-critic on a batch of environments; draws from torch's global generator.

    Args:
        env: the environment.
        out: directory of the training.
        settings: of the algorithm.
        seed: of everything random.
        resume: go on with a training in `out`.

    Attributes:
        num_steps: environment steps so far.
        module: RLlib's module of all networks.
    """

    def __init__(self, env: EnvConfig, out: Path, *, settings: SACSettings, seed: int, resume: bool) -> None:
        env, _ = complete_collection(env, CollectionConfig())
        self._out, self._settings, self._seed = out, settings, seed
        training = {"algorithm": BEHAVIOR, "settings": config_to_dict(settings), "seed": seed}
        self._identity = {**training, "env": config_to_dict(env)}
        self._rounds: list[dict[str, Any]] = []
        source = {"kind": "training", **training}
        manifest = start_manifest(env, (), source=source)
        if any(bound is None for bound in (*manifest.action_low, *manifest.action_high)):
            raise ConfigError(f"env.env_id {env.env_id!r}: expected bounds of all actions, got none")
        is_begun = (out / DATASET).exists()
        if is_begun and not resume:
            raise ConfigError(f"{out}: there is a training already; go on with it by --resume, or take another --out")
        (out / SNAPSHOTS).mkdir(parents=True, exist_ok=True)
        self._manifest: Manifest = create_dataset(out / DATASET, manifest)
        self._low, self._high = np.array([self._manifest.action_low, self._manifest.action_high], np.float64)
        self._batch = make_vector_env(env, settings.num_envs)
        torch.manual_seed(make_seed(seed, Stream.TRAINING))
        self._learner = _build(settings, self._manifest.observation_dim, self._manifest.action_dim)
        self.module = self._learner.module[MODULE]
        self._buffer = Buffer(self._manifest.observation_dim, self._manifest.action_dim)
        self.num_steps, self._num_episodes, self._num_updates = 0, 0, 0
        if (out / STATE).exists():
            self._resume()

    def run_round(self, num_steps: int, progress: Progress) -> None:
        """Step the environments, learn, and keep what came of it."""
        number, settings, num_envs = len(self._rounds), self._settings, self._settings.num_envs
        began = time.monotonic()
        shown = {"return": self._rounds[-1]["return"]} if self._rounds else {}
        torch.manual_seed(make_seed(self._seed, Stream.TRAINING, number, 1))
        draws = make_generator(self._seed, Stream.TRAINING, number)
        noise = make_generator(self._seed, Stream.COLLECTION, number)
        running = RunningEpisodes(self._batch, self._seed, number, BEHAVIOR)
        for _ in range(-(-num_steps // num_envs)):
            self._buffer.add(running.step(self._act(running.observations, noise)))
            self.num_steps += num_envs
            learned = max(self.num_steps - settings.random_steps, 0)
            for _ in range(int(settings.updates_per_step * learned) - self._num_updates):
                update_learner(self._learner, self._draw(draws))
                self._num_updates += 1
            progress.advance(num_envs, **shown)
        returns = [float(episode.rewards.sum(dtype=np.float64)) for episode in running.ended]
        kept, order = running.finish()
        kept = [replace(episode, episode_index=self._num_episodes + i) for i, episode in enumerate(kept)]
        self._buffer.reorder(order)
        self._num_episodes += len(kept)
        write_unit(self._out / DATASET, self._manifest, number, kept)
        self._rounds.append(
            {
                "num_steps": self.num_steps,
                "return": float(np.mean(returns)) if returns else None,
                "episodes": len(returns),
                "updates": self._num_updates,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
        self._save()

    def finish(self) -> Path:
        """Write the policy as it is now, the record of the training, and a snapshot of the dataset."""
        dataset = open_dataset(self._out / DATASET)
        if dataset.snapshot is None:
            write_snapshot(dataset)
        (self._out / RECORD).write_text(json.dumps({**self._identity, "rounds": self._rounds}, indent=2) + "\n")
        path = self._out / POLICY
        path.write_bytes(_to_archive(self.module))
        return path

    def _act(self, observations: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Actions float32[num_envs, action_dim] in environment units, drawn from the policy, or at random at first."""
        if self.num_steps < self._settings.random_steps:
            actions = generator.uniform(-1, 1, (len(observations), len(self._low)))
        else:
            with torch.no_grad():
                inputs = {"obs": torch.from_numpy(observations.astype(np.float32))}
                logits = self.module.forward_exploration(inputs)["action_dist_inputs"]
            actions = self.module.get_exploration_action_dist_cls().from_logits(logits).sample().numpy()
        return (self._low + (actions.astype(np.float64) + 1) * (self._high - self._low) / 2).astype(np.float32)

    def _draw(self, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """A batch as RLlib's learner takes it."""
        steps = self._buffer.draw(self._settings.batch_size, generator)
        actions = (steps.actions.astype(np.float64) - self._low) / (self._high - self._low) * 2 - 1
        values = {
            "obs": steps.observations,
            "actions": np.clip(actions, -1, 1).astype(np.float32),
            "rewards": steps.rewards,
            "new_obs": steps.next_observations,
            "terminateds": steps.terminates,
            "truncateds": np.zeros(len(actions), bool),
            "weights": np.ones(len(actions), np.float32),
            "n_step": np.ones(len(actions), np.float32),
        }
        return {name: torch.from_numpy(array) for name, array in values.items()}

    def _save(self) -> None:
        """Keep a round. The state is written last, so that a round without it is made again, with the same numbers."""
        (self._out / SNAPSHOTS / f"{self.num_steps:08d}.npz").write_bytes(_to_archive(self.module))
        optimizers = self._learner.get_optimizers_for_module(MODULE)
        state = {
            "identity": json.dumps(self._identity),
            "rounds": json.dumps(self._rounds),
            "module": self.module.state_dict(),
            "temperature": self._learner.curr_log_alpha[MODULE].detach(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers},
        }
        content = io.BytesIO()
        torch.save(state, content)
        open_store(self._out).replace(STATE, content.getvalue())

    def _resume(self) -> None:
        """Go on from the last round that was kept; raises as `train_online` does."""
        path = self._out / STATE
        state = _read_state(path)
        try:
            identity, self._rounds = json.loads(state["identity"]), json.loads(state["rounds"])
            if changed := [name for name in self._identity if identity[name] != self._identity[name]]:
                raise ConfigError(
                    f"{self._out}: the training there was begun with another {' and '.join(changed)}; go on with the "
                    "same, or take another --out"
                )
            self.module.load_state_dict(state["module"])
            with torch.no_grad():
                self._learner.curr_log_alpha[MODULE].copy_(state["temperature"])
            for name, optimizer in self._learner.get_optimizers_for_module(MODULE):
                optimizer.load_state_dict(state["optimizers"][name])
            last = self._rounds[-1]
            self.num_steps, self._num_updates = last["num_steps"], last["updates"]
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: expected the state of a training, got a damaged one ({error})") from None
        dataset = open_dataset(self._out / DATASET)
        rows = np.repeat(dataset.episodes.column("unit") < len(self._rounds), dataset.episodes.length)
        terminates = np.zeros(len(rows), bool)
        ends = np.cumsum(dataset.episodes.length, dtype=np.int64) - 1
        terminates[ends] = dataset.episodes.column("terminated")
        observations = dataset.read_column("observation")
        following = np.roll(observations, -1, axis=0)
        following[ends] = dataset.episodes.final_observations
        actions, rewards = dataset.read_column("action"), dataset.read_column("reward")
        self._buffer.add(Steps(observations[rows], actions[rows], rewards[rows], following[rows], terminates[rows]))
        self._num_episodes = int((dataset.episodes.column("unit") < len(self._rounds)).sum())
        if len(self._buffer) != self.num_steps:
            raise CheckpointError(
                f"{self._out / DATASET}: expected the {self.num_steps:,} steps of the training, got "
                f"{len(self._buffer):,}; begin again in another --out"
            )


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(io.BytesIO(read_file(path, max_bytes=MAX_ARRAYS_BYTES)), weights_only=True)
    except Exception as error:  # whatever PyTorch raises for bytes that are something else
        raise CheckpointError(f"{path}: expected the state of a training, got something else ({error})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected the state of a training, got {type(state).__name__}")
    return state


def _build(settings: SACSettings, observation_dim: int, action_dim: int) -> Any:
    """RLlib's learner."""
    from ray.rllib.algorithms.sac import SACConfig

    config = SACConfig().training(
        lr=None,
        actor_lr=settings.learning_rate,
        critic_lr=settings.learning_rate,
        alpha_lr=settings.learning_rate,
        gamma=settings.discount,
        tau=settings.target_rate,
        target_network_update_freq=0,  # after every update
        train_batch_size_per_learner=settings.batch_size,
    )
    return build_learner(config, observation_dim, action_dim, settings.hidden_dim)


def _to_archive(module: Any) -> bytes:
    """The policy of a module as `diffplan.behaviors.policy_file` reads it: the last layer gives mean and log_std."""
    layers = {name: tensor.numpy() for name, tensor in copy_policy(module).items()}
    last = len(layers) // 2 - 1
    arrays: dict[str, np.ndarray] = {"act": np.array("relu"), "out": np.array("tanh")}
    for i in range(last):
        arrays |= {f"w{i}": layers[f"layers.{i}.weight"], f"b{i}": layers[f"layers.{i}.bias"]}
    for kind in ("weight", "bias"):
        mean, log_std = np.split(layers[f"layers.{last}.{kind}"], 2)
        arrays |= {f"{kind[0]}{last}": mean, f"log_std_{kind[0]}": log_std}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    return content.getvalue()
