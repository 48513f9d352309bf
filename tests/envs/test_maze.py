import numpy as np
import pytest

from diffplan_envs.maze import MAZE_TASKS, Maze, make_maze


@pytest.mark.parametrize(
    ("name", "num_free", "goal"), [("umaze", 7, (1, 1)), ("medium", 26, (6, 6)), ("large", 46, (7, 9))]
)
def test_layouts_have_the_cells_and_goals_of_d4rl(name, num_free, goal):
    maze = make_maze(name)
    assert len(maze.free_cells) == num_free
    assert tuple(maze.goal_cell) == goal


def test_free_cells_of_umaze_are_those_read_off_its_picture():
    # #####
    # #GOO#
    # ###O#
    # #OOO#
    # #####
    assert sorted(map(tuple, make_maze("umaze").free_cells.tolist())) == [
        (1, 1), (1, 2), (1, 3), (2, 3), (3, 1), (3, 2), (3, 3),
    ]  # fmt: skip


def test_goal_cell_comes_last_among_the_cells_of_a_reset():
    assert tuple(make_maze("umaze").free_cells[-1]) == (1, 1)


@pytest.mark.parametrize(("name", "limit"), [("open", 150), ("umaze", 300), ("medium", 600), ("large", 800)])
def test_episode_limits_are_those_of_d4rl(name, limit):
    assert MAZE_TASKS[name].max_episode_steps == limit


def test_cell_spans_its_box_minus_the_offset_of_the_ball():
    maze = make_maze("umaze")
    # Cell (1, 2) spans [0.3, 1.3) x [1.3, 2.3): its centre is (0.8, 1.8).
    inside = np.array([[0.8, 1.8], [0.3, 1.3], [1.299, 2.299]])
    assert maze.cell_at(inside).tolist() == [[1, 2]] * 3
    assert maze.cell_at([1.3, 2.3]).tolist() == [2, 3]
    assert maze.is_free(inside).all()
    assert not maze.is_free([1.3, 1.8])  # wall cell (2, 2)


@pytest.mark.parametrize("position", [[-5.0, 1.0], [1.0, 99.0], [-0.71, -0.71]])
def test_nothing_is_free_outside_the_layout(position):
    assert not make_maze("umaze").is_free(position)


def test_distances_count_moves_and_mark_unreachable_cells():
    distances = Maze("#####/#O#O#/#O#G#/#####").distances
    assert distances[1, 1, 2, 1] == 1
    assert distances[2, 1, 2, 1] == 0
    assert distances[1, 1, 2, 3] == -1
    assert make_maze("umaze").distances[3, 1, 1, 1] == 6


@pytest.mark.parametrize("separator", ["/", "\\", "\n"])
def test_rows_may_be_joined_by_any_separator(separator):
    assert Maze(separator.join(["####", "#OG#", "####"])).rows == ("####", "#OG#", "####")


def test_last_free_cell_is_the_goal_of_a_layout_without_one():
    assert tuple(Maze("####/#OO#/####").goal_cell) == (1, 2)


@pytest.mark.parametrize(
    ("layout", "complaint"),
    [
        ("###/###", "at least 3 rows"),
        ("####/#O#/####", "one length"),
        ("###/#X#/###", "characters"),
        ("###/#O#/#O#", "closed"),
        ("###/OO#/###", "closed"),
        ("###/###/###", "free cell"),
        ("large-ish", "expected one of"),
        ("", "expected one of"),
    ],
)
def test_bad_layout_is_refused_in_one_line(layout, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        make_maze(layout)
    assert "\n" not in str(caught.value)
