"""The training loop. It does not depend on Ray, so it also runs in notebooks, tests and on a single GPU machine."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffplan.data.windows.prefetch import Prefetcher
from diffplan.training.allocation import keep_freed_memory
from diffplan.training.batch import TrainingBatch
from diffplan.training.batches import TrainingBatches
from diffplan.training.passes import Passes, adopt, compute_batch_loss, make_ahead, make_passes
from diffplan.training.state import TrainingState
from diffplan.training.threads import keep_team


@dataclass(frozen=True)
class TrainingProgress:
    """Scalars of a moment of training.

    Attributes:
        step: optimizer steps taken.
        loss: mean loss since the last report, over all workers.
        gradient_norm: norm of the last gradient, before clipping.
        learning_rate: learning rate of the last step.
        steps_per_second: rate since the last report.
        validation_loss: loss of the averaged weights on held-out episodes, where it was computed at this step.
        stopped_early: whether training ends here because that loss has not improved for a while.
    """

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    steps_per_second: float
    validation_loss: float | None = None
    stopped_early: bool = False


class Request(enum.IntEnum):
    """Requests to a training loop that is running."""

    NOTHING = 0
    CHECKPOINT = 1
    """Save a checkpoint now, because the machine may be gone soon."""
    STOP = 2
    """Save a checkpoint now, and end."""


def take_step(state: TrainingState, passes: Passes, batches: Sequence[TrainingBatch]) -> tuple[Tensor, Tensor]:
    """One optimizer step, of all workers of a run together.

    Args:
        state: is advanced by one step.
        passes: of this run, from `make_passes`.
        batches: this worker's batches of this step, `accumulation_steps` of them.

    Returns:
        The loss and the gradient's norm before clipping, both scalars on the device.
    """
    training = state.config.training
    state.parameters.zero_grad()
    total = passes(batches[0])
    for batch in batches[1:]:
        total = total + passes(batch)
    gradient = state.parameters.gradient
    if is_distributed():
        # One call for all gradients in each step: passes are too short to overlap several calls with them.
        torch.distributed.all_reduce(gradient)
        gradient /= torch.distributed.get_world_size()
    gradient_norm = torch.linalg.vector_norm(gradient)
    limit = training.max_gradient_norm
    # On a GPU a branch on the norm would wait for the device; there a gradient within the limit is multiplied by 1.
    if limit is not None and (gradient.device.type == "cuda" or gradient_norm > limit):
        nn.utils.clip_grads_with_norm_([state.parameters.flat], limit, gradient_norm)
    state.optimizer.step()
    state.lr_scheduler.step()
    state.step += 1
    state.update_average()
    return total, gradient_norm


def is_distributed() -> bool:
    """Whether this process is one of several workers of a run (`torch.distributed`)."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def _mean_over_workers(values: Tensor) -> Tensor:
    """The mean over all workers of a run; they all reach this together."""
    if is_distributed():
        torch.distributed.all_reduce(values)
        values = values / torch.distributed.get_world_size()
    return values


def _greatest_of_workers(request: Request, device: torch.device) -> Request:
    """The greatest request to any worker of a run; all workers call this together."""
    if not is_distributed():
        return request
    value = torch.tensor(int(request), device=device)
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return Request(int(value))


@torch.no_grad()
def validate(state: TrainingState, batches: Sequence[TrainingBatch], device: torch.device) -> float:
    """Mean loss of the averaged weights over all windows of all workers, which reach this together.

    Args:
        state: the run.
        batches: this worker's held-out windows.
        device: where the model lives.
    """
    network = state.make_average_network()
    sums = torch.zeros(2, device=device)
    for batch in batches:
        if len(batch.x_clean):
            loss = compute_batch_loss(state, network, batch, device)
            sums += torch.stack([loss * len(batch.x_clean), loss.new_tensor(len(batch.x_clean))])
    loss_sum, num_windows = _mean_over_workers(sums).tolist()
    return loss_sum / num_windows


def train(
    state: TrainingState,
    batches: TrainingBatches,
    *,
    device: torch.device | str = "cpu",
    num_steps: int | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    on_checkpoint: Callable[[TrainingProgress], None] | None = None,
    ask: Callable[[], Request] | None = None,
) -> None:
    """Train until the config's number of steps, or until the loss on held-out episodes stops improving.

    Where `torch.distributed` is initialised, this process is one worker of several, which all call this: each with its
    own rows of the same batches. Gradients are averaged over them, so that they stay equal.

    On a CPU the process keeps freed memory from now on (`keep_freed_memory`).

    Args:
        state: state to start from; advanced in place.
        batches: this worker's batches.
        device: where the model lives.
        num_steps: stop at this step instead.
        on_progress: called every `log_interval` steps, at validations and at the end.
        on_checkpoint: called every `checkpoint_interval` steps, when asked for and at the end, after `on_progress`.
        ask: called after each `on_progress` but the last, for requests; either all workers pass one or none does.
    """
    training = state.config.training
    device = torch.device(device)
    if device.type == "cpu":
        keep_freed_memory()
    passes = make_passes(state, device)
    last_step = training.num_steps if num_steps is None else num_steps
    if state.early_stopping.is_due:
        return
    if state.step == 0:
        state.objective.prepare(state.network, batches)
    if is_distributed():  # whatever machine drew and measured them
        for tensor in (state.parameters.flat.detach(), *state.network.buffers()):
            torch.distributed.broadcast(tensor, src=0)
    held_out = batches.make_validation()
    losses: list[Tensor] = []
    since = time.perf_counter()
    ahead = make_ahead(batches.make_step, device)
    with keep_team(), Prefetcher(ahead, range(state.step, last_step)) as prefetched:
        for step_batches in prefetched:
            adopt(step_batches, device)
            learning_rate = float(state.lr_scheduler.get_last_lr()[0])
            loss, gradient_norm = take_step(state, passes, step_batches)
            losses.append(loss)
            validation_loss = None
            # At the end of the run, not where this call stops: what goes on later must be as if it had not stopped.
            if held_out and (state.step % training.validation_interval == 0 or state.step == training.num_steps):
                validation_loss = validate(state, held_out, device)
                state.early_stopping.update(validation_loss)
            stopped_early = state.early_stopping.is_due
            ended = stopped_early or state.step == last_step
            due_checkpoint = ended or state.step % training.checkpoint_interval == 0
            if due_checkpoint or validation_loss is not None or state.step % training.log_interval == 0:
                now = time.perf_counter()
                progress = TrainingProgress(
                    step=state.step,
                    loss=float(_mean_over_workers(torch.stack(losses).mean())),
                    gradient_norm=float(gradient_norm),
                    learning_rate=learning_rate,
                    steps_per_second=len(losses) / (now - since),
                    validation_loss=validation_loss,
                    stopped_early=stopped_early,
                )
                losses.clear()
                if on_progress is not None:
                    on_progress(progress)
                if ask is not None and not ended:
                    request = _greatest_of_workers(ask(), device)
                    due_checkpoint |= request >= Request.CHECKPOINT
                    ended = request == Request.STOP
                if due_checkpoint and on_checkpoint is not None:
                    on_checkpoint(progress)
                since = time.perf_counter()
            if ended:
                break
