from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from actors.copies import EnvConfig
from actors.spaces import Spaces
from replay_server.storage import columns_of
from starling import recorded
from starling.errors import DataError
from starling.recorded import FIRST_ACTOR, LANES, Foreign, recorded_from, refuse_misfit, unrolls, without_oldest
from starling.recordings import Wanted, read_steps, unread, write_steps
from starling.types import Columns, Unroll, spread
from starling.windows import Window
from tests.replay_worlds import EXTRA, SPEC, CountingWorld, make_shard

BOX = Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))


def wanted(obs: Any = None, action: Any = None, extras: Any = None, **env: Any) -> Wanted:
    spaces = Spaces.of("Toy", obs or Box(-9.0, 9.0, (2,)), action or Discrete(3))
    config = EnvConfig(id="Toy", **env)
    return Wanted(
        spec=spaces.spec("Toy", None), terms=spaces, learned_reward=config.learned_reward, extras=dict(extras or {})
    )


def steps(count: int = 6, ends: Sequence[int] = (), cuts: Sequence[int] = (), **more: Any) -> Columns:
    """Return steps of which some terminate and some are truncated; observations count."""
    obs = np.arange(2 * count, dtype=np.float32).reshape(count, 2) / 10
    flags = np.zeros((2, count), bool)
    flags[0, list(ends)] = flags[1, list(cuts)] = True
    arrays = {"obs": obs, "action": np.arange(count) % 3, "reward": np.arange(count, dtype=np.float32)}
    arrays |= {"terminated": flags[0], "truncated": flags[1], "next_obs": obs + np.float32(0.2), **more}
    return {name: array for name, array in arrays.items() if array is not None}


def with_value(array: Any, index: Any, value: Any) -> Any:
    changed = np.array(array)
    changed[index] = value
    return changed


def exact(arrays: Columns) -> Columns:
    """Return the same with the next observations bit for bit those of the next steps."""
    following = np.concatenate([arrays["obs"][1:], arrays["next_obs"][-1:]])
    return {**arrays, "next_obs": following}


def read(arrays: Columns, **kwargs: Any) -> recorded.Recorded:
    return read_steps(arrays, wanted(**kwargs), "data.npz")


def windows_of(sent: Sequence[Unroll], window: Window) -> list[tuple[Any, ...]]:
    """Return every window of a shard that was given these unrolls, each by what it holds but for the version."""
    shard = make_shard(window, capacity=10_000, min_windows=1)
    for unroll in sent:
        shard.insert(unroll)
    rows = np.flatnonzero(shard.index().arrays["masses"])
    columns = spread(shard._storage.gather(rows))
    names = sorted(set(columns) - {"version"})
    return sorted(tuple(columns[name][:, i].tobytes() for name in names) for i in range(len(rows)))


def test_an_end_is_one_of_three_things() -> None:
    given = read(exact(steps(6, ends=[1], cuts=[3])))

    assert given.ended.tolist() == [False, True, False, True, False, False]
    assert given.columns["age"].tolist() == [0, 1, 0, 1, 0, 1]
    assert given.final_obs.shape == (2, 2)
    assert given.columns["truncated"].tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (("observations", "actions", "rewards", "terminals", "timeouts", "next_observations"), None),
        (("obs", "action", "reward", "terminated", "truncations", "next_obs"), None),
    ],
)
def test_other_names_mean_the_same(names: Sequence[str], values: None) -> None:
    ours = exact(steps(6, ends=[1], cuts=[3]))
    theirs = dict(zip(names, ours.values(), strict=True))

    assert np.array_equal(read(theirs).final_obs, read(ours).final_obs)
    assert read(theirs).columns["age"].tolist() == read(ours).columns["age"].tolist()


def test_a_termination_needs_no_last_observation() -> None:
    given = read(steps(6, ends=[2], next_obs=None))

    assert np.array_equal(given.final_obs, np.zeros((1, 2), np.float32))


def test_unrolls_are_of_nobody_and_cross_no_episode_start() -> None:
    given = read(exact(steps(40, ends=[9, 19], cuts=[29])))

    sent = list(unrolls(given, length=16))

    assert [unroll.num_steps for unroll in sent] == [10, 10, 10, 10]  # each ends with its episode
    assert len({unroll.actor for unroll in sent}) == 4
    assert all(unroll.actor >= FIRST_ACTOR for unroll in sent)
    assert all(unroll.priorities is None and not unroll.columns["version"].any() for unroll in sent)
    assert np.array_equal(np.concatenate([unroll.columns["obs"][:, 0] for unroll in sent]), given.columns["obs"])


def test_an_episode_longer_than_an_unroll_stays_in_one_stream() -> None:
    sent = list(unrolls(read(exact(steps(40, ends=[39]))), length=16))

    assert [(unroll.actor, unroll.sequence) for unroll in sent] == [(FIRST_ACTOR, i) for i in range(3)]
    assert sent[2].final_at.tolist() == [7]


def test_a_recording_that_was_cut_in_an_episode_is_cut_in_its_stream() -> None:
    episode = np.arange(200 * LANES) // 100  # no step says that it ended anything
    arrays = steps(len(episode), episode=episode)

    sent = list(unrolls(read(exact(arrays)), length=64))

    assert {unroll.num_steps for unroll in sent} == {64, 36}
    by_lane = [unroll.sequence for unroll in sent if unroll.actor == FIRST_ACTOR]
    assert by_lane == [0, 1, 3, 4]  # 2 is missing, so that nothing is linked across
    assert all(unroll.columns["age"][0, 0] in (0, 64) for unroll in sent)


@pytest.mark.parametrize("length", [5, 64])
@pytest.mark.parametrize("window", [Window(length=3), Window(length=6, period=3, every_obs=True)])
@pytest.mark.parametrize("next_step", [True, False])
def test_what_is_written_and_read_again_makes_the_same_windows(next_step: bool, window: Window, length: int) -> None:
    world = CountingWorld(np.random.default_rng(3), copies=3, next_step=next_step)
    sent = [world.unroll(11, lost=index == 4) for index in range(9)]
    del sent[4]
    terms = Spaces.of("Counting", Box(-9.0, 9.0, (2,)), Discrete(2))
    want = Wanted(spec=SPEC, terms=terms, learned_reward=EnvConfig(id="Counting").learned_reward, extras=EXTRA)

    arrays = write_steps(recorded_from(sent), terms, reward_scale=1.0)
    again = list(unrolls(read_steps(arrays, want, "data.npz"), length))

    assert windows_of(again, window) == windows_of(sent, window)
    assert set(np.unique(arrays["copy"])) == {0, 1, 2}


@pytest.mark.parametrize("gone", [0, 1, 7, 12])
def test_rows_that_were_overwritten_are_left_out(gone: int) -> None:
    world = CountingWorld(np.random.default_rng(4), copies=2)
    unroll = world.unroll(16)
    kept = without_oldest(unroll, gone)

    assert kept.num_steps == unroll.num_steps - gone
    refuse_misfit(kept, columns_of(SPEC, EXTRA), "unroll")
    whole, part = recorded_from([unroll]), recorded_from([kept])
    assert len(part.columns["obs"]) == len(whole.columns["obs"]) - gone


def test_a_stream_begins_with_the_first_step_that_is_left_of_it() -> None:
    world = CountingWorld(np.random.default_rng(4), copies=3, end_probability=0.0)
    sent = [without_oldest(world.unroll(1), 2), world.unroll(2)]

    steps = recorded_from(sent)

    assert steps.columns["copy"].tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert steps.columns["age"].tolist() == [1, 2, 1, 2, 0, 1, 2]
    assert np.flatnonzero(steps.begins).tolist() == [0, 2, 4]


def test_unrolls_of_another_run_are_streams_of_their_own() -> None:
    worlds = [CountingWorld(np.random.default_rng(i), actor=actor) for i, actor in enumerate((7, FIRST_ACTOR + 7, 7))]
    foreign = Foreign()

    sent = [foreign(world.unroll(5)) for world in worlds]

    assert [unroll.actor - FIRST_ACTOR for unroll in sent] == [0, 1, 0]
    assert not any(unroll.columns["version"].any() for unroll in sent)


def test_no_stream_goes_on_where_that_of_another_file_ended() -> None:
    one, other = (CountingWorld(np.random.default_rng(actor), actor=actor) for actor in (3, 4))
    first, second = [one.unroll(5) for _ in range(3)], [other.unroll(5) for _ in range(7)][3:]
    del second[2]  # within a file a gap stays one

    sent = [[foreign(unroll) for unroll in unrolls] for unrolls in (first, second) for foreign in [Foreign()]]

    assert [unroll.actor for unroll in sent[0]] == [unroll.actor for unroll in sent[1]]
    assert [[unroll.sequence for unroll in unrolls] for unrolls in sent] == [[0, 1, 2], [0, 1, 3]]


def test_actions_and_rewards_are_learned_from_as_an_actor_would_send_them() -> None:
    action = np.array([[-2.0, 0.0], [2.0, 1.0], [0.0, 0.5]], np.float64)
    arrays = exact(steps(3, ends=[2], action=action))

    given = read(arrays, action=BOX, reward_scale=2.0, reward_clip=3.0)

    assert np.allclose(given.columns["action"], [[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    assert given.columns["reward"].tolist() == [0.0, 2.0, 3.0]
    assert given.columns["action"].dtype == np.float32


def test_integers_count_from_zero_here_and_from_their_start_there() -> None:
    want = wanted(obs=Discrete(4, start=10), action=Discrete(2, start=5))
    arrays = {"obs": np.array([10, 13]), "action": np.array([5, 6]), "reward": np.zeros(2), "terminated": [False, True]}

    given = read_steps({name: np.array(array) for name, array in arrays.items()}, want, "data.npz")
    back = write_steps(given, want.terms, 1.0)

    assert given.columns["obs"].tolist() == [0, 3]
    assert given.columns["action"].tolist() == [0, 1]
    assert back["obs"].tolist() == [10, 13]
    assert back["action"].tolist() == [5, 6]


GOOD = exact(steps(6, ends=[2], cuts=[4]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"action": None}, "action or actions must be there, got next_obs, obs, reward, terminated, truncated"),
        ({"actions": GOOD["action"]}, "action must be given once, got action and actions"),
        ({"obs": np.zeros((0, 2))}, "obs must hold at least one step, got none"),
        ({"obs": np.zeros((6, 3))}, "obs must be of shape (6, 2), got (6, 3)"),
        ({"reward": np.zeros(5)}, "reward must be of shape (6,), got (5,)"),
        ({"reward": with_value(GOOD["reward"], 3, np.nan)}, "reward must be finite, got nan at step 3"),
        ({"obs": with_value(GOOD["obs"], (2, 1), np.inf)}, "obs must be finite, got inf at step 2"),
        ({"obs": GOOD["obs"].astype(np.float64) * 1e300}, "obs must be finite, got 1.0000000149011612e+299 at step 0"),
        ({"reward": np.array(["x"] * 6)}, "reward must hold numbers, got <U1"),
        ({"action": GOOD["action"] + 0.5}, "action must fit int64 without loss, got 0.5 at step 0"),
        ({"action": with_value(GOOD["action"], 4, 3)}, "action must be one of the 3 of Toy, got 3 at step 4"),
        ({"action": with_value(GOOD["action"], 1, -1)}, "action must be one of the 3 of Toy, got -1 at step 1"),
        ({"terminated": with_value(GOOD["action"], 0, 2)}, "terminated must fit bool without loss, got 2 at step 0"),
        ({"next_obs": None}, "next_obs must be there, as truncated steps need the observation after them, got none af"),
        (
            {"next_obs": with_value(GOOD["next_obs"], (0, 0), 5.0)},
            "next_obs must be the obs of the next step (in the order of time), got [5.0, ",
        ),
        ({"next_obs": None, "final_obs": np.zeros((1, 2))}, "final_obs must be of shape (2, 2), got (1, 2)"),
        ({"age": np.array([0, 1, 2, 5, 7, 0])}, "age must count the steps of each episode, got 7 at step 4"),
        ({"age": np.array([-1, 0, 1, 0, 1, 0])}, "age must count the steps of each episode, got -1 at step 0"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused_in_one_sentence(change: dict[str, Any], sentence: str) -> None:
    arrays = {name: array for name, array in {**GOOD, **change}.items() if array is not None}

    with pytest.raises(DataError) as refusal:
        read(arrays)

    assert str(refusal.value).startswith(f"data.npz: {sentence}")


def test_what_the_algorithm_stores_must_be_there() -> None:
    with pytest.raises(DataError, match=r"data\.npz: log_mu must be there, got action, next_obs, obs"):
        read(GOOD, extras=EXTRA)


def test_actions_beyond_the_bounds_are_refused() -> None:
    action = np.array([[0.0, 0.5], [0.0, 1.1], [0.0, 0.0]], np.float32)

    with pytest.raises(DataError, match=r"action must lie between \[-2.0, 0.0\] and \[2.0, 1.0\], got 1.1"):
        read(exact(steps(3, ends=[2], action=action)), action=BOX)


def test_observations_beyond_the_classes_are_refused() -> None:
    arrays = steps(3, ends=[2], obs=np.array([0, 1, 4]), next_obs=None)

    with pytest.raises(DataError, match="obs must be one of the values of Toy, got 4 at step 2"):
        read(arrays, obs=Discrete(4))


def test_bytes_stay_bytes() -> None:
    space = Box(0, 255, (2,), np.uint8)
    arrays = steps(3, ends=[2], obs=np.full((3, 2), 7), next_obs=None)

    assert read(arrays, obs=space).columns["obs"].dtype == np.uint8
    with pytest.raises(DataError, match="obs must fit uint8 without loss, got 300 at step 1"):
        read({**arrays, "obs": with_value(arrays["obs"], (1, 0), 300)}, obs=space)


def test_arrays_that_mean_nothing_are_named() -> None:
    assert unread(["obs", "actions", "qpos", "log_mu"], wanted(extras=EXTRA)) == ["qpos"]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"log_mu": None}, r"unroll 3: log_mu must be float32 of \[steps, copies, \*\(\)\], got nothing"),
        ({"obs": np.zeros((5, 2, 3), np.float32)}, r"unroll 3: obs must be float32 of .*, got float32 \(5, 2, 3\)"),
        ({"age": None}, "unroll 3: age must be whole numbers"),
        ({"terminated": np.ones((5, 2), bool)}, "unroll 3: final_obs must be one observation for each of"),
    ],
)
def test_an_unroll_that_no_shard_could_store_is_refused(columns: dict[str, Any], sentence: str) -> None:
    unroll = CountingWorld(np.random.default_rng(0), end_probability=0.0).unroll(5)
    unroll.columns.update(columns)
    for name in [name for name, column in columns.items() if column is None]:
        del unroll.columns[name]

    with pytest.raises(DataError, match=sentence):
        refuse_misfit(unroll, columns_of(SPEC, EXTRA), "unroll 3")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"priorities": np.ones((5, 3), np.float32)},
            "priorities must be float32 of at least 5 steps of 2 copies, got",
        ),
        ({"priorities": np.ones((4, 2), np.float32)}, r"priorities must be .*, got float32 \(4, 2\)"),
        ({"priorities": np.ones(10, np.float32)}, r"priorities must be .*, got float32 \(10,\)"),
        ({"priorities": np.full((5, 2), "x")}, "priorities must be .*, got <U1"),
        ({"start_at": np.array([10])}, "start_at must be real steps, ascending"),
        ({"start_at": np.array([1, 0])}, "start_at must be real steps, ascending"),
        ({"start_at": np.array([0.0])}, "start_at must be real steps, ascending, got float64"),
        ({"start_at": np.array(0)}, "start_at must be real steps, ascending"),
        ({"starts": {"h": np.zeros((2, 3))}}, r"starts of h must be one for each of 0 steps, got \(2, 3\)"),
        ({"final_at": np.empty(0)}, "final_obs must be one observation"),
        ({"final_obs": np.empty((0, 2), "U1")}, "final_obs must be one observation"),
    ],
)
def test_what_comes_beside_the_columns_is_checked_too(changed: dict[str, Any], sentence: str) -> None:
    unroll = CountingWorld(np.random.default_rng(0), end_probability=0.0, next_step=False).unroll(5)

    with pytest.raises(DataError, match=f"unroll 3: {sentence}"):
        refuse_misfit(replace(unroll, **changed), columns_of(SPEC, EXTRA), "unroll 3")


def test_what_an_actor_sends_beside_the_columns_passes() -> None:
    world = CountingWorld(np.random.default_rng(0), period=2)
    unroll = replace(world.unroll(5), priorities=np.full((7, 2), np.nan, np.float32))  # 2 rows are carried

    refuse_misfit(unroll, columns_of(SPEC, EXTRA), "unroll 3")

    assert unroll.start_at.size
