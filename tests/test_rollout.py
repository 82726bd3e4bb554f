from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from actors.copies import Copies, EnvConfig
from actors.envs import make_copies
from actors.rollout import Rollout
from starling.errors import EnvError
from starling.networks import Lstm, Mlp, Network
from starling.params import Params
from starling.spec import Spec
from starling.types import Array, Believed, Columns, Place, Unroll
from starling.windows import Window
from tests.counting import Counting, CountingVector
from tests.playing import DISCOUNT, Explorer, collect, q_of, rollout_of

CONFIG = EnvConfig(id="counting", copies=3, reward_scale=0.01, reward_clip=4.0)
SEEDS = [11, 22, 33]

BACKENDS: dict[str, Callable[[], Copies]] = {
    "DISABLED": lambda: make_copies(CONFIG, Counting),
    "NEXT_STEP": lambda: Copies(
        SyncVectorEnv([Counting] * 3, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP), CONFIG
    ),
    "vector NEXT_STEP": lambda: Copies(CountingVector(3, SEEDS, AutoresetMode.NEXT_STEP), CONFIG),
    "vector SAME_STEP": lambda: Copies(CountingVector(3, SEEDS, AutoresetMode.SAME_STEP), CONFIG),
}
WINDOWS = [Window(), Window(length=3), Window(length=5), Window(length=4, period=2)]


class History:
    """All unrolls behind one another, and what each row led to."""

    def __init__(self, unrolls: list[Unroll]) -> None:
        self.columns = {
            name: np.concatenate([unroll.columns[name] for unroll in unrolls]) for name in unrolls[0].columns
        }
        self.starts = np.cumsum([0] + [len(unroll.columns["reward"]) for unroll in unrolls])
        rows, copies = self.columns["reward"].shape
        self.after: dict[tuple[int, int], Array] = {
            (t, e): self.columns["obs"][t + 1, e] for t in range(rows - 1) for e in range(copies)
        }
        for start, unroll in zip(self.starts, unrolls, strict=False):
            for at, final in zip(unroll.final_at, unroll.final_obs, strict=True):
                self.after[start + int(at) // copies, int(at) % copies] = final

    def priorities(self, window: Window) -> dict[tuple[int, int], float]:
        """Return the n-step error of every window that is whole, by the definition."""
        found = {}
        for t, e in np.argwhere(self.columns["acted"]).tolist():
            if self.columns["age"][t, e] % window.period == 0:
                error = self._error(t, e, window.length)
                if error is not None:
                    found[t, e] = error
        return found

    def _error(self, t: int, e: int, length: int) -> float | None:
        columns = self.columns
        total, factor, row = 0.0, 1.0, t
        while True:
            if row >= len(columns["reward"]):
                return None  # its steps are not all played
            total += factor * columns["reward"][row, e]
            factor *= DISCOUNT
            ended = columns["terminated"][row, e] or columns["truncated"][row, e]
            if ended or row - t + 1 == length:
                break
            row += 1
        if not columns["terminated"][row, e]:
            if (row, e) not in self.after:
                return None  # the row that shows what it led to is not played
            # what comes after a row was judged by who saw it: the row behind it, or at an end the one who ended it
            version = columns["version"][row if ended else row + 1, e]
            total += factor * q_of(self.after[row, e][None], version).max()
        return float(
            abs(total - q_of(columns["obs"][t, e][None], columns["version"][t, e])[0, columns["action"][t, e]])
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[1] * 30, [2, 7, 1, 16, 4], [30]])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_every_window_gets_the_priority_of_its_definition_once(
    backend: str, lengths: list[int], window: Window
) -> None:
    unrolls = collect(rollout_of(BACKENDS[backend](), window), lengths)
    history = History(unrolls)

    reported: dict[tuple[int, int], float] = {}
    for start, unroll in zip(history.starts, unrolls, strict=False):
        assert unroll.priorities is not None
        carried = len(unroll.priorities) - len(unroll.columns["reward"])
        assert carried == min(start, window.length)
        for i, e in np.argwhere(~np.isnan(unroll.priorities)).tolist():
            key = (int(start) - carried + i, e)
            assert key not in reported
            reported[key] = unroll.priorities[i, e]

    assert reported == pytest.approx(history.priorities(window), rel=1e-4, abs=1e-4)
    assert len(reported) > 10


def test_an_algorithm_without_beliefs_leaves_priorities_to_the_shard() -> None:
    unroll = collect(rollout_of(BACKENDS["DISABLED"](), Window(length=3), judges=False), [20])[0]

    assert unroll.priorities is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_row_leads_to_the_next_one_or_to_a_last_observation(backend: str) -> None:
    history = History(collect(rollout_of(BACKENDS[backend](), Window()), [5, 1, 9, 16]))
    columns = history.columns

    for (t, e), after in history.after.items():
        if columns["acted"][t, e]:
            seed, episode, step, acts = columns["obs"][t, e]
            assert after.tolist() == [seed, episode, step + 1, acts * 10 + columns["action"][t, e]]
            assert columns["age"][t, e] == step


def test_an_autoreset_row_is_no_step_and_earns_nothing() -> None:
    columns = History(collect(rollout_of(BACKENDS["vector NEXT_STEP"](), Window()), [40])).columns
    ended = columns["terminated"] | columns["truncated"]

    assert np.array_equal(~columns["acted"][1:], ended[:-1])
    assert not columns["reward"][~columns["acted"]].any()
    assert not ended[~columns["acted"]].any()


@pytest.mark.parametrize("window", [Window(length=3), None], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unroll_in_flight_does_not_change(backend: str, window: Window | None) -> None:
    rollout = rollout_of(BACKENDS[backend](), window)
    unroll = collect(rollout, [8])[0]
    optional = [array for array in (unroll.next_obs, unroll.priorities) if array is not None]
    arrays = [*unroll.columns.values(), unroll.final_at, unroll.final_obs, *optional, *unroll.episodes.values()]
    before = [np.copy(array) for array in arrays]

    collect(rollout, [8, 8])

    for array, kept in zip(arrays, before, strict=True):
        assert np.array_equal(array, kept, equal_nan=True)


def test_the_next_observation_is_the_first_row_of_the_next_unroll() -> None:
    first, second = collect(rollout_of(BACKENDS["DISABLED"](), None), [5, 5])

    assert first.next_obs is not None
    assert np.array_equal(first.next_obs, second.columns["obs"][0])
    assert (first.sequence, second.sequence) == (0, 1)


def test_the_same_steps_are_played_however_they_are_cut() -> None:
    whole = History(collect(rollout_of(BACKENDS["DISABLED"](), Window()), [12]))
    cut = rollout_of(BACKENDS["DISABLED"](), Window())
    parts = History([unroll for length in (5, 1, 6) for unroll in collect(cut, [length])])

    assert all(np.array_equal(whole.columns[name], parts.columns[name]) for name in whole.columns)


def test_a_restart_plays_the_same_steps_in_a_new_generation() -> None:
    rollout = rollout_of(BACKENDS["DISABLED"](), Window(length=3))
    first = collect(rollout, [10])[0]
    collect(rollout, [3])

    rollout.restart(np.random.SeedSequence(7), generation=4)
    again = collect(rollout, [10])[0]

    assert (again.generation, again.sequence, again.actor) == (4, 0, 2)
    assert all(np.array_equal(first.columns[name], again.columns[name]) for name in first.columns)
    assert again.priorities is not None
    assert len(again.priorities) == 10  # nothing is carried over from the old streams


@pytest.mark.parametrize("backend", BACKENDS)
def test_episodes_are_counted_in_the_environments_own_reward(backend: str) -> None:
    unrolls = collect(rollout_of(BACKENDS[backend](), Window()), [4, 9, 2, 30])
    copies = 3

    for unroll in unrolls:
        explore = np.linspace(0.1, 0.9, copies, dtype=np.float32)[unroll.final_at % copies]
        assert np.array_equal(unroll.episodes["explore"], explore)
        for i, (_, episode, length, acts) in enumerate(unroll.final_obs):
            actions = [int(digit) for digit in f"{int(acts):0{int(length)}d}"]
            rewards = [100 * episode + 10 * (t + 1) + 5 + action for t, action in enumerate(actions)]
            assert unroll.episodes["length"][i] == length
            assert unroll.episodes["return"][i] == sum(rewards)
            assert unroll.episodes["progress"][i] == length
    assert sum(len(unroll.final_at) for unroll in unrolls) > 20


def test_what_is_learned_from_is_scaled_and_clipped() -> None:
    columns = History(collect(rollout_of(BACKENDS["DISABLED"](), Window()), [30])).columns
    _, episode, step, _ = np.moveaxis(columns["obs"], -1, 0)

    raw = 100 * episode + 10 * (step + 1) + 5 + columns["action"]

    assert np.allclose(columns["reward"], np.clip(0.01 * raw, -4.0, 4.0))
    assert columns["reward"].max() == 4.0


def test_what_the_algorithm_stores_stands_beside_its_observation() -> None:
    columns = History(collect(rollout_of(BACKENDS["NEXT_STEP"](), Window()), [6, 6])).columns

    for t, e in np.ndindex(12, 3):
        expected = q_of(columns["obs"][t, e][None], columns["version"][t, e])[0]
        assert np.allclose(columns["q"][t, e], expected, atol=1e-5)
    assert columns["version"][:, 0].tolist() == [1] * 6 + [2] * 6


def test_a_figure_that_only_some_episodes_have_is_not_a_number_for_the_others() -> None:
    class Sometimes(Counting):
        def step(self, action: int) -> Any:
            *rest, info = super().step(action)
            return *rest, {"luck": 1.0} if self._length == 1 else info

    episodes = collect(rollout_of(make_copies(CONFIG, Sometimes), Window()), [60])[0].episodes

    assert np.array_equal(np.isnan(episodes["luck"]), episodes["length"] != 1)
    assert np.array_equal(np.isnan(episodes["progress"]), episodes["length"] == 1)


def test_a_time_limit_of_ours_truncates_in_the_columns() -> None:
    config = EnvConfig(id="counting", copies=3, time_limit=4)

    unroll = collect(rollout_of(make_copies(config, partial(Counting, endless=True)), Window(length=2)), [9])[0]

    assert unroll.columns["truncated"].nonzero()[0].tolist() == [3, 3, 3, 7, 7, 7]
    assert not unroll.columns["terminated"].any()
    assert unroll.episodes["length"].tolist() == [4.0] * 6


def test_a_reward_that_is_no_number_stops_the_actor_and_names_the_environment() -> None:
    class Hot(Counting):
        def step(self, action: int) -> Any:
            obs, _, *rest = super().step(action)
            return obs, np.inf if obs[1] == 2 else 0.0, *rest

    with pytest.raises(EnvError, match="environment counting gave rewards that are not finite"):
        collect(rollout_of(make_copies(CONFIG, Hot), Window()), [40])


class Counter:
    """Networks that remember how many observations of this episode they have seen, and say so."""

    def load(self, params: Params) -> None:
        pass

    def recall(self, obs: Array, state: Columns) -> tuple[Columns, Columns]:
        after = state["q"] + np.float32(1.0)
        return {"q": np.tile(after[:, 0], 3)}, {"q": after}


class Recurrent(Explorer):
    """Needs a memory, and judges a window by what is said about the observation behind it."""

    def acting(self, spec: Spec) -> Mapping[str, Network]:
        return {"q": Network(torso=Mlp(), heads={}, memory=Lstm(size=1))}

    def priorities(self, windows: Believed) -> Array:
        last: Array = windows.value[windows.steps, np.arange(len(windows.steps))]
        return last


def recurrent_rollout(backend: str, window: Window | None) -> Rollout:
    copies = BACKENDS[backend]()
    place = Place(actor=0, num_actors=1, num_copies=3)
    return Rollout(copies, Recurrent(window), Counter(), place, np.random.SeedSequence(7))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [Window(length=2), Window(length=4, period=2)], ids=str)
def test_windows_begin_with_what_was_remembered_of_their_own_episode(backend: str, window: Window) -> None:
    for unroll in collect(recurrent_rollout(backend, window), [5, 1, 20]):
        age, acted = unroll.columns["age"].reshape(-1), unroll.columns["acted"].reshape(-1)

        assert np.array_equal(unroll.start_at, np.flatnonzero(acted & (age % window.period == 0)))
        assert np.array_equal(unroll.starts["q"][:, 0, 0], age[unroll.start_at])
        assert unroll.starts["q"].shape == (len(unroll.start_at), 2, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_unroll_begins_with_what_every_copy_remembers(backend: str) -> None:
    for unroll in collect(recurrent_rollout(backend, None), [5, 1, 20, 3]):
        assert unroll.start_at.tolist() == [0, 1, 2]
        assert np.array_equal(unroll.starts["q"][:, 0, 0], unroll.columns["age"][0])
        assert unroll.priorities is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_last_observation_is_judged_with_all_that_its_episode_left(backend: str) -> None:
    unroll = collect(recurrent_rollout(backend, Window()), [40])[0]
    columns, priorities = unroll.columns, unroll.priorities

    assert priorities is not None
    judged = ~np.isnan(priorities)
    seen = np.where(columns["terminated"], 0, columns["age"] + 2)  # what the step saw, all before, and what it led to
    assert np.array_equal(priorities[judged], seen[judged])
    assert (columns["truncated"] & ~columns["terminated"])[judged].any()


def test_an_algorithm_without_a_memory_stores_no_states() -> None:
    unroll = collect(rollout_of(BACKENDS["DISABLED"](), Window()), [5])[0]

    assert (unroll.start_at.tolist(), unroll.starts) == ([], {})
