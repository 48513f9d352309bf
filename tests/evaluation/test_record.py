import numpy as np

from diffplan.evaluation.record import Record


def make_walk(num_steps, seed):
    """A walk in the plane, its rewards and where it succeeds."""
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=(num_steps + 1, 3)),
        generator.normal(size=num_steps),
        generator.random(num_steps) > 0.9,
    )


def record_walks(walks, order):
    record = Record(np.stack([observations[0] for observations, *_ in walks]))
    for envs in order:
        rows = [(walks[i][0][record.lengths[i] + 1], *(part[record.lengths[i]] for part in walks[i][1:])) for i in envs]
        record.add(np.array(envs), *(np.array(column) for column in zip(*rows, strict=True)))
    return record


def test_what_episodes_add_up_to_does_not_depend_on_who_was_stepped_when():
    walks = [make_walk(num, seed) for seed, num in enumerate((150, 70, 3))]
    order = [[0, 1, 2]] * 3 + [[1]] * 40 + [[1, 0]] * 27 + [[0]] * 120
    record = record_walks(walks, order)
    assert record.lengths.tolist() == [150, 70, 3]
    for i, (observations, rewards, success) in enumerate(walks):
        np.testing.assert_array_equal(record.observations[: len(observations), i], observations)
        assert record.returns[i] == rewards.cumsum()[-1]
        time = int(success.argmax()) + 1 if success.any() else -1
        assert record.times_to_goal[i] == time
        ways = np.sqrt((np.diff(observations[: time + 1 if time > 0 else None, [0, 2]], axis=0) ** 2).sum(axis=1))
        np.testing.assert_allclose(record.path_lengths([0, 2])[i], ways.sum(), rtol=1e-12)
        assert record.count(lambda seen: seen[..., 1] > 0)[i] == (observations[1:, 1] > 0).sum()
    alone = record_walks(walks[1:2], [[0]] * 70)
    assert alone.returns[0] == record.returns[1]
    assert alone.path_lengths([0, 2])[0] == record.path_lengths([0, 2])[1]
