"""Policies in safetensors, in zips of Stable-Baselines3 and in directories, each against a computation of its own."""

import io
import json
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffplan.behaviors.offline_policy import OfflinePolicy, PolicyDescription, save_offline_policy
from diffplan.behaviors.policy_file import make_policy
from diffplan.behaviors.registry import hash_policy_files
from diffplan.config import EnvConfig
from diffplan.errors import ConfigError
from diffplan.tasks.contracts import BehaviorContext
from diffplan.tasks.task import Task

LOW, HIGH = np.array([-1.0, 0.0]), np.array([1.0, 3.0])
CONTEXT = BehaviorContext(EnvConfig(env_id="Pendulum-v1"), LOW, HIGH, action_noise=0.0, max_goal_steps=50)
OBSERVATIONS = np.random.default_rng(5).normal(size=(6, 3))
TANH, RELU = "<class 'torch.nn.modules.activation.Tanh'>", "<class 'torch.nn.modules.activation.ReLU'>"


def act(name, observations=OBSERVATIONS, context=CONTEXT):
    policy = make_policy(name, context)
    policy.reset(observations, [np.random.default_rng(i) for i in range(len(observations))])
    return policy.act(observations)


def draw_noise():
    """First normal numbers of each environment's generator."""
    return np.stack([np.random.default_rng(i).standard_normal((512, 2))[0] for i in range(len(OBSERVATIONS))])


def refuse(name, *words):
    with pytest.raises(ConfigError) as caught:
        make_policy(name, CONTEXT)
    assert "\n" not in str(caught.value)
    for word in ("collection.behavior", *words):
        assert word in str(caught.value)


def make_state(shapes, seed=0):
    """A state dict of random float32 weights; `{prefix: (out, in)}`, without bias where `(out, in, None)`."""
    draw = np.random.default_rng(seed).normal
    state = {}
    for prefix, (after, before, *bias) in shapes.items():
        state[f"{prefix}.weight"] = torch.tensor(draw(size=(after, before)) / 2, dtype=torch.float32)
        if not bias:
            state[f"{prefix}.bias"] = torch.tensor(draw(size=after) / 2, dtype=torch.float32)
    return state


PPO = {
    "mlp_extractor.policy_net.0": (5, 3), "mlp_extractor.policy_net.2": (4, 5), "mlp_extractor.value_net.0": (7, 3),
    "action_net": (2, 4), "value_net": (1, 7),
}  # fmt: skip
SAC = {
    "actor.latent_pi.0": (5, 3), "actor.latent_pi.2": (4, 5), "actor.mu": (2, 4), "actor.log_std": (2, 4),
    "critic.qf0.0": (9, 5), "critic_target.qf0.0": (9, 5),
}  # fmt: skip
TD3 = {"actor.mu.0": (5, 3), "actor.mu.2": (4, 5), "actor.mu.4": (2, 4), "actor_target.mu.0": (5, 3)}
LOG_STD = {"log_std": torch.tensor([-1.0, -0.5])}


def save_zip(path, state, data=None, *, name="policy.pth", compression=zipfile.ZIP_STORED):
    weights = io.BytesIO()
    torch.save(state, weights)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("data", json.dumps({} if data is None else data))
        archive.writestr(name, weights.getvalue())
        archive.writestr("_stable_baselines3_version", "2.7.0")
    return f"policy:{path}"


def forward(state, prefixes, activate):
    """Linear layers by name, and the last hidden layer."""
    x = OBSERVATIONS
    for i, prefix in enumerate(prefixes):
        hidden = activate(x) if i else x
        bias = state.get(f"{prefix}.bias")
        x = np.einsum("oi,bi->bo", state[f"{prefix}.weight"].numpy(), hidden) + (0 if bias is None else bias.numpy())
    return x, hidden


def relu(x):
    return x * (x > 0)


def squash(x):
    return LOW + (HIGH - LOW) * (np.tanh(x) + 1) / 2


def clip(x):
    return np.minimum(np.maximum(x, LOW), HIGH)


NET = ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"]


@pytest.mark.parametrize(
    ("data", "option", "activate"),
    [
        ({}, "", np.tanh),
        ({"policy_kwargs": {":type:": "<class 'dict'>", ":serialized:": "gASV", "activation_fn": RELU}}, "", relu),
        ({"policy_kwargs": {"activation_fn": TANH}}, "", np.tanh),
        ({"policy_kwargs": {":type:": "<class 'dict'>", ":serialized:": "gASV"}}, "&activation=relu", relu),
        ([1], "", np.tanh),
    ],
    ids=["default", "named", "named-default", "option", "list"],
)
def test_on_policy_algorithms_clip_a_gaussian(data, option, activate, tmp_path):
    state = {**make_state(PPO), **LOG_STD}
    name = save_zip(tmp_path / "ppo.zip", state, data, compression=zipfile.ZIP_DEFLATED)
    mean, _ = forward(state, NET, activate)
    np.testing.assert_allclose(act(f"{name}?deterministic{option}"), clip(mean), atol=1e-6)
    noisy = act(f"{name}?{option.removeprefix('&')}" if option else name)
    np.testing.assert_allclose(noisy, clip(mean + np.exp([-1.0, -0.5]) * draw_noise()), atol=1e-6)


def test_layers_that_old_versions_share_come_first(tmp_path):
    shapes = {"mlp_extractor.shared_net.0": (6, 3), "mlp_extractor.policy_net.0": (4, 6), "action_net": (2, 4)}
    state = {**make_state(shapes), **LOG_STD}
    mean, _ = forward(state, list(shapes), np.tanh)
    np.testing.assert_allclose(act(save_zip(tmp_path / "a.zip", state) + "?deterministic"), clip(mean), atol=1e-6)


def test_soft_actor_critic_squashes_a_gaussian(tmp_path):
    state = make_state(SAC)
    name = save_zip(tmp_path / "sac.zip", state)
    mean, hidden = forward(state, ["actor.latent_pi.0", "actor.latent_pi.2", "actor.mu"], relu)
    np.testing.assert_allclose(act(f"{name}?deterministic"), squash(mean), atol=1e-6)
    raw = np.einsum("oi,bi->bo", state["actor.log_std.weight"].numpy(), hidden) + state["actor.log_std.bias"].numpy()
    np.testing.assert_allclose(act(name), squash(mean + np.exp(raw) * draw_noise()), atol=1e-6)


def test_deterministic_algorithms_squash(tmp_path):
    state = make_state(TD3)
    name = save_zip(tmp_path / "td3.ZIP", state)
    mean, _ = forward(state, ["actor.mu.0", "actor.mu.2", "actor.mu.4"], relu)
    np.testing.assert_allclose(act(name), squash(mean), atol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "data", "finish"),
    [
        ({"action_net.0": (2, 3, None)}, {}, clip),
        ({"action_net": (2, 3, None)}, {}, clip),
        ({"action_net.0": (2, 3)}, {"policy_kwargs": {"squash_output": True}}, squash),
        ({"action_net.0": (4, 3), "action_net.2": (2, 4)}, {}, squash),
        ({"action_net.0": (4, 3), "action_net.2": (2, 4)}, {"policy_kwargs": {"squash_output": False}}, clip),
    ],
)
def test_random_search_is_linear_or_squashed(shapes, data, finish, tmp_path):
    state = make_state(shapes)
    mean, _ = forward(state, list(shapes), relu)
    np.testing.assert_allclose(act(save_zip(tmp_path / "ars.zip", state, data)), finish(mean), atol=1e-6)


class Harmful:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("state", "data", "words"),
    [
        ({"q_net.q_net.0.weight": torch.zeros(2, 3)}, {}, ["PPO, A2C", "q_net.q_net.0.weight"]),
        ({}, {}, ["PPO, A2C", "none"]),
        (make_state(PPO), {}, ["discrete"]),
        ({**make_state(PPO), "log_std": torch.zeros(4, 2)}, {}, ["use_sde"]),
        ({**make_state(PPO), **LOG_STD}, {"use_sde": True}, ["use_sde"]),
        ({**make_state(TD3), "actor.log_std": torch.zeros(4, 2)}, {}, ["use_sde"]),
        ({**make_state(PPO), **LOG_STD, "features_extractor.cnn.0.weight": torch.zeros(2, 2)}, {}, ["other layers"]),
        ({**make_state(PPO), **LOG_STD, "lstm_actor.weight_ih_l0": torch.zeros(2, 2)}, {}, ["other layers", "lstm"]),
        ({**make_state(SAC), "actor.latent_pi.1.scale": torch.zeros(5)}, {}, ["linear layers only", "latent_pi.1.sc"]),
        ({**make_state(SAC), "actor.latent_pi.1.weight": torch.zeros(5)}, {}, ["linear layer", "(5,)"]),
        ({"actor.latent_pi.0.weight": torch.zeros(4, 3), "actor.mu.weight": torch.zeros(2, 4)}, {}, ["actor.log_std"]),
        ({**make_state(PPO), **LOG_STD}, {"policy_kwargs": {"activation_fn": "<class 'a.ELU'>"}}, ["got act elu"]),
        ({**make_state({**PPO, "action_net": (3, 4)}), **LOG_STD}, {}, ["w2", "for 2 actions"]),
        ({**make_state(PPO), "log_std": torch.tensor([np.nan, 0.0])}, {}, ["log_std", "finite"]),
        ([1, 2], {}, ["tensors by name"]),
        ({"action_net.weight": [1.0]}, {}, ["tensors by name"]),
        ({"action_net.weight": torch.zeros(1, 1).expand(2**16, 2**16)}, {}, ["bytes of numbers"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and isinstance(value[0], str) else "",
)  # fmt: skip
def test_other_policies_in_zips_are_one_clear_line(state, data, words, tmp_path):
    refuse(save_zip(tmp_path / "other.zip", state, data), "other.zip", *words)


def test_what_a_zip_pickles_never_runs(tmp_path):
    refuse(save_zip(tmp_path / "a.zip", {"log_std": Harmful(tmp_path / "written")}), "a.zip")
    assert not (tmp_path / "written").exists()


def cut_zip(path):
    save_zip(path, make_state(TD3))
    path.write_bytes(path.read_bytes()[:-100])


def spoil_zip(path):
    save_zip(path, make_state(TD3))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))


def write_old_format(path):
    weights = io.BytesIO()
    torch.save(make_state(TD3), weights, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy.pth", weights.getvalue())


def write_deep_data(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "[" * 100_000)
        archive.writestr("policy.pth", b"")


def write_lzma(path):
    save_zip(path, make_state(TD3), compression=zipfile.ZIP_LZMA)


@pytest.mark.parametrize(
    ("write", "word"),
    [
        (cut_zip, "got none"),
        (spoil_zip, "got none"),
        (write_old_format, "PyTorch 1.6"),
        (write_deep_data, "levels deep"),
        (write_lzma, "compression"),
        (lambda path: path.write_text("text"), "BadZipFile"),
        (lambda path: save_zip(path, make_state(TD3), name="other.pth"), "with policy.pth"),
        (lambda path: None, "No such file"),
    ],
    ids=["cut", "spoilt", "old", "deep", "lzma", "text", "member", "missing"],
)
def test_damaged_zips_are_one_clear_line(write, word, tmp_path):
    write(tmp_path / "policy.zip")
    refuse(f"policy:{tmp_path}/policy.zip", "policy.zip", word)


def test_zips_that_would_inflate_are_refused_before(tmp_path, monkeypatch):
    """Bytes of zeros shrink to a thousandth, outside and inside of `policy.pth`."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(100 * 2**20))
    for member, content in {"policy.pth": inner.getvalue(), "data": b" " * (100 * 2**20)}.items():
        with zipfile.ZipFile(tmp_path / f"{member}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, content)
            if member == "data":
                archive.writestr("policy.pth", b"")
    monkeypatch.setattr("diffplan.behaviors.stable_baselines.MAX_ARRAYS_BYTES", 50 * 2**20)
    tracemalloc.start()
    for member in ("policy.pth", "data"):
        refuse(f"policy:{tmp_path}/{member}.zip", "at most")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20
    monkeypatch.undo()
    refuse(f"policy:{tmp_path}/data.zip", "data: expected at most")


def make_tensors(dtype=torch.float32):
    state = make_state({"0": (5, 3), "1": (2, 5)})
    return {f"{kind[0]}{i}": state[f"{i}.{kind}"].to(dtype) for i in "01" for kind in ("weight", "bias")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_safetensors_hold_the_same_arrays(dtype, tmp_path):
    tensors = {**make_tensors(dtype), "obs_mean": torch.ones(3), "obs_var": torch.full((3,), 4.0)}
    extra = {"obs_clip": torch.tensor([0.3])} if dtype == torch.float64 else {}
    metadata = {"act": "relu", "out": "clip", "obs_eps": "1e-3", "made_by": "somebody"}
    save_file({**tensors, **extra}, tmp_path / "a.safetensors", metadata if extra else {**metadata, "obs_clip": "0.3"})
    w0, b0, w1, b1 = (tensors[name].double().numpy() for name in ("w0", "b0", "w1", "b1"))
    x = np.clip((OBSERVATIONS - 1) / np.sqrt(4.001), -0.3, 0.3)
    expected = clip(relu(x @ w0.T + b0) @ w1.T + b1)
    np.testing.assert_allclose(act(f"policy:{tmp_path}/a.safetensors"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "metadata", "word"),
    [
        (None, None, "expected an array act"),
        (None, {"act": "relu"}, "expected an array out"),
        (None, {"act": "relu", "out": "clip", "obs_eps": "small"}, "small"),
        (b"", None, "got none"),
        (struct.pack("<Q", 2**60) + b"{}", None, "got none"),
        (b"text, longer than eight bytes", None, "got none"),
    ],
)
def test_damaged_safetensors_are_one_clear_line(content, metadata, word, tmp_path):
    path = tmp_path / "a.safetensors"
    if content is None:
        save_file(make_tensors(), path, metadata)
    else:
        path.write_bytes(content)
    refuse(f"policy:{path}", "a.safetensors", word)


def save_trained(path, goal=(1.0, 2.0), low=(-1.0, 0.0), high=(1.0, 3.0)):
    state = make_state({"layers.0": (6, 3 if goal else 5), "layers.1": (4, 6)})
    tensors = {**state, "observation_center": torch.zeros(len(state["layers.0.weight"][0]))}
    tensors["observation_scale"] = torch.ones_like(tensors["observation_center"])
    description = PolicyDescription("iql", CONTEXT.env, goal, 2, low, high, 0.05, "tanh", {})
    save_offline_policy(path, OfflinePolicy(tensors, description))
    return tensors


def test_a_policy_of_baseline_train_acts_towards_its_goal(tmp_path):
    tensors = save_trained(tmp_path / "iql")
    mean, _ = forward(tensors, ["layers.0", "layers.1"], relu)
    expected = clip(LOW + (np.tanh(mean[:, :2]) / 0.95 + 1) * (HIGH - LOW) / 2)
    np.testing.assert_allclose(act(f"policy:{tmp_path}/iql"), expected, atol=1e-5)
    wide = np.concatenate([np.full((6, 1), 9.0), OBSERVATIONS], axis=1)
    np.testing.assert_allclose(act(f"policy:{tmp_path}/iql?skip=1&deterministic", wide), expected, atol=1e-5)


def damage_weights(path):
    content = (path / "policy.safetensors").read_bytes()
    (path / "policy.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("change", "arguments", "option", "words"),
    [
        (damage_weights, {}, "", ["checksum"]),
        (lambda path: (path / "policy.json").unlink(), {}, "", ["without policy.json", "diffplan baseline train"]),
        (lambda path: (path / "policy.json").write_text("{"), {}, "", ["policy.json"]),
        (lambda path: None, {"goal": None}, "", ["told goals", "--goal"]),
        (lambda path: None, {"high": (1.0, 4.0)}, "", ["action bounds of Pendulum-v1", "[1.0, 4.0]"]),
        (lambda path: None, {}, "?norm=a.npz", ["no option norm"]),
        (lambda path: None, {}, "?activation=relu", ["no option activation"]),
    ],
)
def test_other_directories_are_one_clear_line(change, arguments, option, words, tmp_path):
    save_trained(tmp_path / "iql", **arguments)
    change(tmp_path / "iql")
    refuse(f"policy:{tmp_path}/iql{option}", "iql", *words)


@pytest.mark.parametrize("name", ["rllib_checkpoint.json", "module_state.pkl", "learner_group"])
def test_checkpoints_of_rllib_are_refused_with_the_reason(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    refuse(f"policy:{tmp_path}", "RLlib", "pickled", "docs/tasks.md")


def compute_hash(name):
    return hash_policy_files(name, Task(name="any"))


def test_a_file_is_recorded_without_options_and_its_statistics_too(tmp_path):
    for name in ("a.npz", "norm.npz"):
        np.savez(tmp_path / name, w0=np.zeros(3))
    a, norm = str(tmp_path / "a.npz"), str(tmp_path / "norm.npz")
    plain = compute_hash(f"policy:{a}")
    assert compute_hash(f"policy:{a}?noise=0.1&deterministic:3,random:1") == plain
    both = compute_hash(f"policy:{a}?norm={norm}:0.5,policy:{a}:0.5")
    assert both.keys() == {a, norm}
    assert both[a] == plain[a]
    np.savez(norm, w0=np.ones(3))
    changed = compute_hash(f"policy:{a}?norm={norm}")
    assert changed[a] == both[a]
    assert changed[norm] != both[norm]


def test_every_file_of_a_directory_is_recorded(tmp_path):
    save_trained(tmp_path / "iql")
    save_trained(tmp_path / "same")
    one, same = (compute_hash(f"policy:{tmp_path}/{name}")[f"{tmp_path}/{name}"] for name in ("iql", "same"))
    assert one == same
    found = {one}
    for write in (
        lambda root: damage_weights(root),
        lambda root: (root / "below").mkdir() or (root / "below" / "notes").write_text("b"),
        lambda root: (root / "below" / "notes").rename(root / "below" / "words"),
    ):
        write(Path(tmp_path, "iql"))
        found |= set(compute_hash(f"policy:{tmp_path}/iql").values())
    assert len(found) == 4


def test_a_hash_never_waits_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(ConfigError, match="expected a policy in a file"):
        compute_hash(f"policy:{tmp_path}/a.npz")
