import copy
import dataclasses
import math

import pytest
import torch
from small_training import CONFIG, write_straight_paths

from diffplan.checkpoint import load_checkpoint, load_training_state, save_checkpoint
from diffplan.config import TrainingConfig, with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.errors import CheckpointError
from diffplan.training import flat_parameters
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import Request, take_step, train
from diffplan.training.passes import compute_batch_loss, make_passes
from diffplan.training.state import TrainingState, compute_lr_factor

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("straight") / "dataset"
    write_straight_paths(root)
    return open_dataset(root)


def start(dataset, overrides=None, **kwargs):
    config = with_overrides(CONFIG, overrides or {})
    batches = TrainingBatches(config, dataset, **kwargs)
    return TrainingState(config, batches.layout), batches


def assert_equal_to_the_last_bit(first, second):
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal_to_the_last_bit(first[key], second[key])
    elif isinstance(first, list | tuple):
        for a, b in zip(first, second, strict=True):
            assert_equal_to_the_last_bit(a, b)
    else:
        assert first == second


@pytest.mark.parametrize("overrides", [{}, {"training.optimizer": "adam", "training.accumulation_steps": 2}])
def test_two_steps_a_checkpoint_and_two_steps_are_four_steps(dataset, tmp_path, overrides):
    straight, batches = start(dataset, overrides)
    train(straight, batches)
    assert straight.step == 4

    first, batches = start(dataset, overrides)
    train(first, batches, num_steps=2)
    save_checkpoint(
        tmp_path,
        config=first.config,
        layout=first.layout,
        step=first.step,
        normalizer=batches.normalizer,
        weights=first.average_weights(),
        dataset={},
        training_state=first.state_dict(),
    )
    torch.manual_seed(99)
    resumed, batches = start(dataset, overrides)
    resumed.load_state_dict(load_training_state(tmp_path))
    assert resumed.step == 2
    assert_equal_to_the_last_bit(load_checkpoint(tmp_path).weights, dict(resumed.average_weights()))
    train(resumed, batches)

    assert_equal_to_the_last_bit(resumed.state_dict(), straight.state_dict())
    assert resumed.lr_scheduler.get_last_lr() == straight.lr_scheduler.get_last_lr()
    untrained, _ = start(dataset, overrides)
    name = "final.1.weight"
    assert not torch.equal(resumed.network.state_dict()[name], untrained.network.state_dict()[name])
    assert not torch.equal(resumed.average_weights()[name], resumed.network.state_dict()[name])


def test_weights_of_convolutions_have_their_channels_last_in_the_flat_array(dataset):
    state, batches = start(dataset)
    take_step(state, make_passes(state, CPU), batches.make_step(0))
    convolutions = [m for m in state.network.modules() if isinstance(m, torch.nn.Conv1d | torch.nn.ConvTranspose1d)]
    assert len(convolutions) > 5
    begin, end = (state.parameters.flat.data_ptr() + 4 * i for i in (0, len(state.parameters.flat)))
    for layer in convolutions:
        for weight in (layer.weight, layer.weight.grad):
            assert weight[:, :, None].is_contiguous(memory_format=torch.channels_last)
        assert begin <= layer.weight.data_ptr() < end


def test_a_state_goes_on_where_weights_lie_in_the_order_of_their_shape(dataset, monkeypatch):
    state, batches = start(dataset)
    train(state, batches, num_steps=2)
    saved = copy.deepcopy(state.state_dict())
    train(state, batches)
    monkeypatch.setattr(flat_parameters, "uses_channels_last", lambda device: False)  # as on a GPU
    elsewhere, batches = start(dataset, {"training.seed": 1})
    elsewhere.load_state_dict(saved)
    assert elsewhere.network.final[0].convolution.weight.is_contiguous()
    assert_equal_to_the_last_bit(elsewhere.state_dict(), saved)
    train(elsewhere, TrainingBatches(state.config, dataset))
    # Sums in another order, which threads make another again.
    torch.testing.assert_close(elsewhere.state_dict(), state.state_dict(), rtol=1e-3, atol=1e-4)


def test_first_weights_follow_from_the_seed_and_leave_the_global_stream_alone(dataset):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, _ = start(dataset)
    assert torch.equal(torch.rand(1), expected)
    same, other = start(dataset)[0], start(dataset, {"training.seed": 1})[0]
    assert_equal_to_the_last_bit(dict(first.network.state_dict()), dict(same.network.state_dict()))
    assert not torch.equal(first.network.final[1].weight, other.network.final[1].weight)


def test_state_of_another_network_is_a_checkpoint_error(dataset):
    small, _ = start(dataset)
    large, _ = start(dataset, {"network.dim": 16})
    with pytest.raises(CheckpointError, match="belongs to another network or version") as caught:
        small.load_state_dict(large.state_dict())
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="belongs to another network or version"):
        small.load_state_dict({"step": 1})


def test_gradients_averaged_over_two_workers_are_those_of_the_whole_batch(dataset):
    def compute_gradients(**kwargs):
        state, batches = start(dataset, **kwargs)
        batch = batches.make(3)
        batch = dataclasses.replace(batch, x_clean=batch.x_clean.double(), noise=batch.noise.double())
        loss = compute_batch_loss(state, state.network.double(), batch, CPU)
        loss.backward()
        return loss.detach(), [p.grad for p in state.network.parameters()]

    whole_loss, whole = compute_gradients()
    losses, halves = zip(*[compute_gradients(rank=r, world_size=2) for r in range(2)], strict=True)
    torch.testing.assert_close((losses[0] + losses[1]) / 2, whole_loss)
    assert abs(losses[0] - losses[1]) > 1e-4
    for expected, first, second in zip(whole, *halves, strict=True):
        torch.testing.assert_close((first + second) / 2, expected, rtol=1e-9, atol=1e-12)


def test_accumulated_gradient_is_the_mean_over_the_passes(dataset):
    overrides = {"training.accumulation_steps": 2, "training.max_gradient_norm": None}
    state, batches = start(dataset, overrides)
    reference = copy.deepcopy(state.network)
    losses = [compute_batch_loss(state, reference, batches.make(0, p), CPU) for p in range(2)]
    ((losses[0] + losses[1]) / 2).backward()
    loss, _ = take_step(state, make_passes(state, CPU), batches.make_step(0))
    torch.testing.assert_close(loss, (losses[0] + losses[1]).detach() / 2)
    for got, expected in zip(state.network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-7)


def test_gradients_are_clipped_and_their_norm_before_it_returned(dataset):
    _, free_norm = take_step(*_with_passes(start(dataset, {"training.max_gradient_norm": None})))
    state, batches = start(dataset, {"training.max_gradient_norm": 0.01})
    _, norm = take_step(state, make_passes(state, CPU), batches.make_step(0))
    assert norm == free_norm > 0.01
    clipped = torch.stack([p.grad.norm() for p in state.network.parameters()]).norm()
    assert clipped.item() == pytest.approx(0.01, rel=1e-3)


def test_gradients_within_the_limit_are_left_as_they_are(dataset):
    free, _ = with_step_taken(dataset, None)
    limited, norm = with_step_taken(dataset, 1e3)
    assert norm < 1e3
    assert torch.equal(free.parameters.gradient, limited.parameters.gradient)
    assert torch.equal(free.parameters.flat, limited.parameters.flat)


def with_step_taken(dataset, limit):
    state, batches = start(dataset, {"training.max_gradient_norm": limit})
    return state, take_step(state, make_passes(state, CPU), batches.make_step(0))[1]


def _with_passes(started):
    state, batches = started
    return state, make_passes(state, CPU), batches.make_step(0)


def test_learning_rate_warms_up_and_falls_as_a_cosine_to_zero():
    training = TrainingConfig(num_steps=110, num_warmup_steps=10)
    assert [compute_lr_factor(step, training) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    for step, expected in [(10, 1.0), (35, 0.5 + math.sqrt(2) / 4), (60, 0.5), (110, 0.0), (200, 0.0)]:
        assert compute_lr_factor(step, training) == pytest.approx(expected, abs=1e-12)


def test_constant_learning_rate_stays_after_the_warm_up():
    training = TrainingConfig(num_steps=20, num_warmup_steps=4, lr_schedule="constant")
    assert [compute_lr_factor(step, training) for step in (1, 3, 4, 19, 500)] == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert compute_lr_factor(0, TrainingConfig(num_warmup_steps=0, lr_schedule="constant")) == 1.0


def test_each_step_is_taken_at_its_learning_rate(dataset):
    overrides = {"training.num_steps": 5, "training.num_warmup_steps": 2, "training.log_interval": 1}
    state, batches = start(dataset, overrides)
    reports = []
    train(state, batches, on_progress=reports.append)
    training = state.config.training
    expected = [training.learning_rate * compute_lr_factor(step, training) for step in range(5)]
    assert [report.learning_rate for report in reports] == pytest.approx(expected)


def test_average_is_a_copy_and_then_decays(dataset):
    overrides = {
        "training.num_steps": 9,
        "training.ema_start_step": 3,
        "training.ema_interval": 2,
        "training.ema_decay": 0.75,
        "training.log_interval": 1,
    }
    state, batches = start(dataset, overrides)
    expected = None

    def check(progress):
        nonlocal expected
        weights = state.network.final[1].weight.detach().clone()
        if progress.step <= 3:
            expected = weights
            assert torch.equal(state.average_weights()["final.1.weight"], weights)
        elif progress.step % 2 == 0:
            expected = 0.75 * expected + 0.25 * weights
        torch.testing.assert_close(state.average_weights()["final.1.weight"], expected, rtol=1e-6, atol=1e-7)

    train(state, batches, on_progress=check)
    assert state.step == 9
    assert not torch.equal(expected, state.network.final[1].weight)


def test_training_lowers_the_loss(dataset):
    overrides = {
        "network.dim": 16,
        "training.num_steps": 200,
        "training.num_warmup_steps": 20,
        "training.learning_rate": 5e-3,
        "training.batch_size": 24,
    }
    state, batches = start(dataset, overrides)

    def validate():
        with torch.no_grad():
            held_out = [batches.make(step) for step in range(1000, 1010)]
            return sum(float(compute_batch_loss(state, state.network, batch, CPU)) for batch in held_out)

    before = validate()
    train(state, batches)
    assert validate() < 0.1 * before


def test_reports_and_checkpoints_come_when_due_and_at_the_end(dataset):
    overrides = {"training.num_steps": 11, "training.log_interval": 3, "training.checkpoint_interval": 4}
    state, batches = start(dataset, overrides)
    calls = []
    train(
        state,
        batches,
        on_progress=lambda progress: calls.append(("progress", progress.step)),
        on_checkpoint=lambda progress: calls.append(("checkpoint", progress.step)),
    )
    assert [step for kind, step in calls if kind == "checkpoint"] == [4, 8, 11]
    assert [step for kind, step in calls if kind == "progress"] == [3, 4, 6, 8, 9, 11]
    assert calls[-2:] == [("progress", 11), ("checkpoint", 11)]


def test_a_checkpoint_comes_when_asked_for_and_the_run_goes_on_as_if_it_had_not(dataset):
    straight, batches = start(dataset, {"training.log_interval": 1})
    train(straight, batches)
    answers, saved = [Request.NOTHING, Request.CHECKPOINT, Request.NOTHING], []
    asked, batches = start(dataset, {"training.log_interval": 1})
    train(asked, batches, on_checkpoint=lambda p: saved.append(p.step), ask=lambda: answers.pop(0))
    assert saved == [2, 4]
    assert not answers  # nobody is asked at the end
    assert_equal_to_the_last_bit(asked.state_dict(), straight.state_dict())


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later(dataset):
    straight, batches = start(dataset, {"training.log_interval": 1})
    train(straight, batches)
    saved = []
    stopped, batches = start(dataset, {"training.log_interval": 1})
    train(stopped, batches, on_checkpoint=lambda p: saved.append(p.step), ask=lambda: Request.STOP)
    assert saved == [stopped.step] == [1]
    train(stopped, batches)
    assert_equal_to_the_last_bit(stopped.state_dict(), straight.state_dict())


def test_loss_reported_is_the_mean_since_the_last_report(dataset):
    single, batches = start(dataset, {"training.log_interval": 1})
    losses = []
    train(single, batches, on_progress=lambda progress: losses.append(progress.loss))
    paired, batches = start(dataset, {"training.log_interval": 2})
    means = []
    train(paired, batches, on_progress=lambda progress: means.append(progress.loss))
    assert means == pytest.approx([(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2])


def test_finished_run_is_left_as_it_is(dataset):
    state, batches = start(dataset)
    train(state, batches)
    before = copy.deepcopy(state.state_dict())
    train(state, batches, on_progress=lambda progress: pytest.fail("reported"))
    assert_equal_to_the_last_bit(state.state_dict(), before)


def run_worker(rank, dataset_root, rendezvous, overrides, out):
    """One of two workers; the weights that it ends with are written to `out`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    state, batches = start(open_dataset(dataset_root), overrides, rank=rank, world_size=2)
    if rank == 1:  # as if it had been drawn on another kind of machine
        with torch.no_grad():
            state.parameters.flat += 1
            for buffer in state.network.buffers():
                buffer.mul_(2)
    losses = []
    train(state, batches, on_progress=lambda progress: losses.append(progress.loss))
    torch.save({"weights": dict(state.network.state_dict()), "losses": losses}, f"{out}-{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_two_workers_are_equal_and_train_as_one(dataset, tmp_path, accumulation_steps):
    overrides = {
        "training.accumulation_steps": accumulation_steps,
        "training.num_steps": 6,
        "training.log_interval": 1,
        "training.optimizer": "adam",
        "training.learning_rate": 1e-4,
    }
    alone, batches = start(dataset, overrides)
    losses = []
    train(alone, batches, on_progress=lambda progress: losses.append(progress.loss))
    arguments = (dataset.uri, str(tmp_path / "rendezvous"), overrides, str(tmp_path / "worker"))
    torch.multiprocessing.spawn(run_worker, arguments, nprocs=2)
    first, second = (torch.load(tmp_path / f"worker-{rank}", weights_only=True) for rank in range(2))
    assert_equal_to_the_last_bit(first, second)
    assert first["losses"] == pytest.approx(losses, rel=1e-4)
    # One layer whose gradient is no rounding error, which Adam would blow up.
    torch.testing.assert_close(
        first["weights"]["final.1.weight"], alone.network.state_dict()["final.1.weight"], rtol=1e-3, atol=1e-5
    )
