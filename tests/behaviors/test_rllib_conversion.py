"""The conversion of a checkpoint of RLlib that docs/tasks.md shows, and the refusal of one that is not converted."""

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.algorithms.sac.sac_catalog import SACCatalog
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule

from diffplan.behaviors.policy_file import make_policy
from diffplan.behaviors.registry import hash_policy_files
from diffplan.config import EnvConfig
from diffplan.errors import ConfigError
from diffplan.tasks.contracts import BehaviorContext
from diffplan.tasks.task import Task

DOCUMENT = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
CONTEXT = BehaviorContext(EnvConfig(env_id="Pendulum-v1"), np.array([-2.0]), np.array([2.0]), 0.0, 200)
MODULES: dict[str, tuple[Any, Any, Any]] = {
    "ppo": (DefaultPPOTorchRLModule, PPOCatalog, PPOConfig),
    "sac": (DefaultSACTorchRLModule, SACCatalog, SACConfig),
}


@pytest.mark.parametrize("algorithm", MODULES)
def test_a_converted_policy_acts_as_the_module_does(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, catalog, config = MODULES[algorithm]
    env = gymnasium.make("Pendulum-v1")
    normalised = gymnasium.spaces.Box(-1, 1, (1,))
    torch.manual_seed(0)
    module = cls(
        observation_space=env.observation_space,
        action_space=normalised,
        model_config=config().model_config,
        catalog_class=catalog,
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    module.save_to_path(tmp_path / "checkpoint/learner_group/learner/rl_module/default_policy")

    with pytest.raises(ConfigError, match=r"checkpoint of RLlib, whose weights are pickled .*docs/tasks\.md") as caught:
        make_policy(f"policy:{tmp_path}/checkpoint", CONTEXT)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="checkpoint of RLlib"):
        hash_policy_files(f"policy:{tmp_path}/checkpoint", Task(name="any"))

    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?RLModule.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    exec(code, {})
    observations = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    outputs = module.forward_inference({"obs": torch.from_numpy(observations)})["action_dist_inputs"].detach().numpy()
    mean, log_std = np.split(outputs, 2, axis=1)
    behavior = make_policy("policy:policy.npz?deterministic", CONTEXT)
    behavior.reset(observations, [np.random.default_rng(i) for i in range(20)])
    squash = {"ppo": lambda x: np.clip(x, -1, 1), "sac": np.tanh}[algorithm]
    np.testing.assert_allclose(behavior.act(observations), 2 * squash(mean), atol=1e-5)
    assert np.ptp(mean) > 0.01

    behavior = make_policy("policy:policy.npz", CONTEXT)
    behavior.reset(observations, [np.random.default_rng(i) for i in range(20)])
    noise = np.stack([np.random.default_rng(i).standard_normal((512, 1))[0] for i in range(20)])
    np.testing.assert_allclose(
        behavior.act(observations), 2 * squash(mean + np.exp(np.clip(log_std, -20, 2)) * noise), atol=1e-5
    )
