import threading

import pytest
import torch
from small_training import CONFIG, write_straight_paths

from diffplan.config import with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import train
from diffplan.training.state import TrainingState
from diffplan.training.threads import compute_alone


@pytest.fixture
def team_of_two():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_one_thread_computes_alone_and_others_keep_their_team(team_of_two):
    seen = []

    def run():
        seen.append(torch.get_num_threads())
        compute_alone()
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [2, 1]
    assert torch.get_num_threads() == 2


def test_only_the_thread_that_trains_has_a_team(team_of_two, tmp_path, monkeypatch):
    write_straight_paths(tmp_path / "data")
    config = with_overrides(CONFIG, {"training.num_steps": 3, "training.log_interval": 1})
    batches = TrainingBatches(config, open_dataset(tmp_path / "data"))
    made, trained = {}, []
    make_step = batches.make_step

    def make(step):
        made[step] = (threading.current_thread().name, torch.get_num_threads())
        return make_step(step)

    monkeypatch.setattr(batches, "make_step", make)
    train(TrainingState(config, batches.layout), batches, on_progress=lambda _: trained.append(torch.get_num_threads()))
    assert made == {step: ("prefetch", 1) for step in range(3)}
    assert trained == [2, 2, 2]
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]  # another training, in a thread that has not computed yet, has a team too
