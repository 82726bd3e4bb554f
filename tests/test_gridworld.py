import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from actors.envs import EnvConfig, make_copies, measure_spec
from starling.errors import ConfigError
from starling.gridworld import EXITS, FREE, GOAL, PIT, START, WALL, GridWorld, draw_policy, neighbour, optimal

UP, RIGHT, DOWN, LEFT = range(4)


def test_the_best_values_are_those_of_the_textbook() -> None:
    q, _ = optimal(slip=0.2, step_reward=-0.04, discount=1.0)

    book = {0: 0.812, 1: 0.868, 2: 0.918, 4: 0.762, 6: 0.660, 8: 0.705, 9: 0.655, 10: 0.611, 11: 0.388}
    for cell, value in book.items():
        assert q[cell].max() == pytest.approx(value, abs=5e-4)


def test_without_slipping_the_best_way_goes_around_the_wall_by_the_shortest_path() -> None:
    q, policy = optimal(discount=1.0)

    assert q[START].max() == pytest.approx(1.0 - 5 * 0.04)
    assert draw_policy(policy).splitlines()[0] == ">>>+"


@pytest.mark.parametrize(
    ("cell", "move", "there"),
    [(8, UP, 4), (8, LEFT, 8), (8, DOWN, 8), (4, RIGHT, 4), (6, LEFT, 6), (9, UP, 9), (1, DOWN, 1), (2, RIGHT, GOAL)],
)
def test_walls_leave_the_walker_where_it_is(cell: int, move: int, there: int) -> None:
    assert neighbour(cell, move) == there


def test_following_the_best_actions_earns_the_best_value() -> None:
    env = GridWorld()
    q, policy = optimal(discount=1.0)

    cell, _ = env.reset(seed=0)
    total, terminated = 0.0, False
    while not terminated:
        cell, reward, terminated, truncated, _ = env.step(int(policy[cell]))
        total += reward

    assert total == pytest.approx(q[START].max())
    assert not truncated


def test_the_pit_ends_an_episode_badly() -> None:
    env = GridWorld()
    env.reset(seed=0)

    steps = [env.step(move) for move in (RIGHT, RIGHT, UP, RIGHT)]

    assert steps[-1][:3] == (PIT, pytest.approx(-1.04), True)


def test_a_walk_that_leads_nowhere_is_truncated_and_not_terminated() -> None:
    env = GridWorld(max_steps=3)
    env.reset(seed=0)

    ends = [env.step(DOWN)[2:4] for _ in range(3)]

    assert ends == [(False, False), (False, False), (False, True)]


def test_slips_go_off_at_right_angles_as_often_as_they_should() -> None:
    env = GridWorld(slip=0.2)
    env.reset(seed=0)
    ended_in = np.zeros(12)

    for _ in range(4000):
        env.reset()
        ended_in[env.step(UP)[0]] += 1

    assert ended_in[[4, 8, 9]] / 4000 == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_random_starts_reach_every_free_cell_and_no_other() -> None:
    env = GridWorld(random_start=True)
    env.reset(seed=0)

    starts = {int(env.reset()[0]) for _ in range(300)}

    assert starts == set(FREE)
    assert not starts & {WALL, *EXITS}


def test_the_walker_is_drawn_where_it_stands() -> None:
    env = GridWorld(render_mode="ansi")
    env.reset(seed=0)

    assert env.render() == "...+\n.#.-\n@...\n"


def test_it_keeps_gymnasiums_rules() -> None:
    check_env(GridWorld(render_mode="ansi"), skip_render_check=True)


def test_it_is_reached_by_import_path() -> None:
    config = EnvConfig(id="starling.gridworld:GridWorld", copies=2, kwargs={"slip": 0.1, "max_steps": 7})

    spec = measure_spec(config)

    assert (spec.classes, spec.num_actions) == ((12,), 4)
    assert make_copies(config).reset([1, 2]).tolist() == [START, START]


def test_a_chance_beyond_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gridworld.slip must be in \[0, 1\], got 1.5"):
        GridWorld(slip=1.5)
