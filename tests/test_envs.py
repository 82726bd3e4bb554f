import logging
from collections.abc import Callable
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from actors.copies import Copies, EnvConfig, seed_numbers
from actors.envs import make_copies, measure_spec
from starling.errors import ConfigError, EnvError
from starling.types import Array
from tests.counting import Counting, CountingVector

SEEDS = [11, 22, 33]
CONFIG = EnvConfig(id="counting", copies=len(SEEDS))
STEPS = 60


class Transition(NamedTuple):
    """One step as it is learned from."""

    obs: tuple[float, ...]
    action: int
    reward: float
    terminated: bool
    truncated: bool
    successor: tuple[float, ...]


def policy(obs: Array) -> Array:
    """Choose by what is seen alone, so that every backend is asked the same."""
    return (obs[:, 1] * 7 + obs[:, 2]).astype(np.int64) % 3


def by_hand(seed: int, count: int) -> list[Transition]:
    env = Counting(reuse=False)
    obs, _ = env.reset(seed=seed)
    played: list[Transition] = []
    while len(played) < count:
        action = int(policy(obs[None])[0])
        after, reward, terminated, truncated, _ = env.step(action + 5)
        played.append(Transition(tuple(obs), action, float(reward), terminated, truncated, tuple(after)))
        obs = env.reset()[0] if terminated or truncated else after
    return played


def play(copies: Copies, steps: int, choose: Callable[[Array], Array] = policy) -> list[list[Transition]]:
    """Return each copy's transitions, the successor taken from `final_obs` where an episode ended."""
    obs = copies.reset(SEEDS).copy()
    played: list[list[Transition]] = [[] for _ in SEEDS]
    for _ in range(steps):
        action = choose(obs)
        step = copies.step(action)
        after = step.obs.copy()
        after[step.ended] = step.final_obs
        for i in np.flatnonzero(step.acted):
            ends = bool(step.terminated[i]), bool(step.truncated[i])
            played[i].append(
                Transition(tuple(obs[i].flat), int(action[i]), float(step.reward[i]), *ends, tuple(after[i].flat))
            )
        obs = step.obs.copy()
    copies.close()
    return played


def gymnasiums(kind: type, mode: AutoresetMode) -> Copies:
    # Gymnasium's own SAME_STEP passes the last observation on by reference, which a reused array would falsify
    env = partial(Counting, reuse=mode is not AutoresetMode.SAME_STEP)
    return Copies(kind([env] * len(SEEDS), copy=False, autoreset_mode=mode), CONFIG)


def by_hand_vector(mode: AutoresetMode) -> Copies:
    return Copies(CountingVector(len(SEEDS), SEEDS, mode), CONFIG)


BACKENDS: dict[str, Callable[[], Copies]] = {
    "what actors use": lambda: make_copies(CONFIG, Counting),
    **{f"sync {mode.name}": partial(gymnasiums, SyncVectorEnv, mode) for mode in AutoresetMode},
    **{f"async {mode.name}": partial(gymnasiums, AsyncVectorEnv, mode) for mode in AutoresetMode},
    "vector NEXT_STEP": partial(by_hand_vector, AutoresetMode.NEXT_STEP),
    "vector SAME_STEP": partial(by_hand_vector, AutoresetMode.SAME_STEP),
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_gives_the_transitions_of_single_copies_played_by_hand(backend: str) -> None:
    expected = [by_hand(seed, STEPS) for seed in SEEDS]

    played = play(BACKENDS[backend](), STEPS)

    for mine, theirs in zip(played, expected, strict=True):
        assert len(mine) >= STEPS // 2
        assert mine == theirs[: len(mine)]


def test_the_counting_environment_ends_in_all_three_ways() -> None:
    ends = {(t.terminated, t.truncated) for seed in SEEDS for t in by_hand(seed, STEPS)}

    assert ends == {(False, False), (True, False), (False, True), (True, True)}


@pytest.mark.parametrize("backend", ["what actors use", "sync NEXT_STEP", "sync SAME_STEP", "vector SAME_STEP"])
def test_the_figures_of_an_episode_are_those_of_its_last_step(backend: str) -> None:
    copies = BACKENDS[backend]()
    obs = copies.reset(SEEDS)
    seen = 0

    for _ in range(STEPS):
        step = copies.step(policy(obs))
        obs = step.obs
        if step.ended.size:
            seen += 1
            assert set(step.metrics) >= {"progress", "goal"}
            assert step.metrics["progress"].tolist() == step.final_obs[:, 2].tolist()
            assert step.metrics["goal"].tolist() == step.terminated[step.ended].tolist()
            assert "name" not in step.metrics

    assert seen > 10


def test_a_second_reset_with_the_same_seeds_begins_the_same_episodes() -> None:
    copies = make_copies(CONFIG, Counting)
    first = copies.reset(SEEDS).copy()
    copies.step(np.zeros(3, np.int64))

    again = copies.reset(SEEDS)

    assert np.array_equal(first, again)


@pytest.mark.parametrize("vectorization", ["auto", "sync"])
def test_a_time_limit_truncates_and_does_not_terminate(vectorization: Any) -> None:
    copies = make_copies(EnvConfig(id="CartPole-v1", copies=3, time_limit=4, vectorization=vectorization))
    copies.reset(SEEDS)

    steps = [copies.step(np.array([0, 1, i % 2])) for i in range(4)]

    assert not any(step.truncated.any() for step in steps[:3])
    assert steps[3].truncated.all()
    assert not steps[3].terminated.any()
    assert copies.spec.max_episode_steps == 4


def test_a_time_limit_truncates_the_copies_of_a_factory() -> None:
    copies = make_copies(EnvConfig(id="counting", copies=3, time_limit=2), partial(Counting, endless=True))
    copies.reset(SEEDS)

    ended = [copies.step(np.zeros(3, np.int64)).ended.tolist() for _ in range(4)]

    assert ended == [[], [0, 1, 2], [], [0, 1, 2]]


def cartpole_after(obs: Array, action: int) -> Array:
    """Return where CartPole goes, by Gymnasium's single environment."""
    env = gymnasium.make("CartPole-v1").unwrapped
    env.reset()
    env.state = obs.astype(np.float64)  # type: ignore[attr-defined]
    after: Array = env.step(action)[0]
    return after


@pytest.mark.parametrize("id_", ["CartPole-v1", "envpool:CartPole-v1"])
def test_every_transition_of_a_cartpole_vector_obeys_its_physics_also_the_last_of_an_episode(id_: str) -> None:
    if id_.startswith("envpool"):
        pytest.importorskip("envpool", reason="EnvPool is not installed", exc_type=Exception)
    copies = make_copies(EnvConfig(id=id_, copies=3, time_limit=25))

    played = play(copies, 80, lambda obs: (obs[:, 2] + obs[:, 3] > 0).astype(np.int64) * np.array([0, 1, 1]))

    every = list(chain.from_iterable(played))
    for transition in every:
        expected = cartpole_after(np.array(transition.obs), transition.action)
        assert np.allclose(transition.successor, expected, atol=1e-5)
    ends = [(t.terminated, t.truncated) for t in every]
    assert (True, False) in ends
    assert (False, True) in ends
    firsts = [after.obs for copy in played for t, after in pairwise(copy) if t.terminated or t.truncated]
    assert firsts
    assert np.abs(firsts).max() <= 0.05


def test_atari_vectors_give_the_same_transitions_in_both_of_their_modes() -> None:
    pytest.importorskip("ale_py", reason="ale_py is not installed")
    small = {"img_height": 21, "img_width": 21, "stack_num": 1, "noop_max": 4, "max_num_frames_per_episode": 240}

    def atari(mode: str) -> list[list[Transition]]:
        config = EnvConfig(id="ale_py:ALE/Breakout-v5", copies=3, kwargs={**small, "autoreset_mode": mode})
        return play(make_copies(config), 130, lambda obs: obs[:, 0].sum((1, 2), dtype=np.int64) % 4)

    next_step, same_step = atari("NextStep"), atari("SameStep")

    for one, other in zip(next_step, same_step, strict=True):
        assert len(other) == 130
        assert one == other[: len(one)]
        assert sum(t.truncated or t.terminated for t in one) >= 1


def test_bytes_and_the_sign_of_a_reward_are_left_alone_until_it_is_learned_from() -> None:
    config = EnvConfig(id="counting", reward_scale=0.5, reward_clip=2.0)

    learned = config.learned_reward(np.array([-10.0, -1.0, 3.0, 7.0]))

    assert learned.tolist() == [-2.0, -0.5, 1.5, 2.0]
    assert learned.dtype == np.float32


def test_seeds_fit_environments_that_count_on_from_an_int32() -> None:
    seeds = seed_numbers(np.random.SeedSequence(1), 1000)

    assert len(set(seeds)) == 1000
    assert max(seeds) < 2**30


class NotAnEnv:
    """Something else."""


class Breaks(Counting):
    """Fails in its first step."""

    def step(self, action: int) -> Any:
        raise RuntimeError("the simulator is gone\nand with it a long story")


class Lacks(Counting):
    """Finds out that half of it is missing, as Gymnasium's own environments do."""

    def __init__(self) -> None:
        raise gymnasium.error.DependencyNotInstalled('Box2D is not installed, `pip install "gymnasium[box2d]"` first')


class LacksMore(Counting):
    """The same, of something that no extra of Gymnasium brings."""

    def __init__(self) -> None:
        raise gymnasium.error.DependencyNotInstalled("the simulator is at example.org")


class Hot(Counting):
    """Returns what is no number."""

    def step(self, action: int) -> Any:
        return np.full(4, np.nan), 0.0, False, False, {}


class Silent(CountingVector):
    """A vector that does not say how it resets."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs, SEEDS, AutoresetMode.NEXT_STEP)
        self.metadata = {}


SHARED = Counting()

BAD = {
    "CartPole-v9": "environment CartPole-v9 is not known to Gymnasium; the nearest name is CartPole-v1",
    "no_such_module_here:make": (
        "environment no_such_module_here:make needs the module no_such_module_here, which fails to import: "
        "ModuleNotFoundError: No module named 'no_such_module_here'"
    ),
    "tests.counting:Countin": (
        "environment tests.counting:Countin names Countin, which tests.counting does not have; "
        "the nearest name is Counting"
    ),
    "tests.counting:MAX_LENGTH": "environment tests.counting:MAX_LENGTH must name a class or a function, got int",
    "tests.test_envs:NotAnEnv": "environment tests.test_envs:NotAnEnv must make a gymnasium.Env, got NotAnEnv",
    "tests.test_envs:Breaks": (
        "environment tests.test_envs:Breaks failed in step: RuntimeError: the simulator is gone"
    ),
    "tests.test_envs:Lacks": (
        "environment tests.test_envs:Lacks needs what is not installed here; pip install 'gymnasium[box2d]'"
    ),
    "tests.test_envs:LacksMore": (
        "environment tests.test_envs:LacksMore needs what is not installed here; the simulator is at example.org"
    ),
    "tests.test_envs:Hot": (
        "environment tests.test_envs:Hot gave observations that are not finite; nothing can be learned from them"
    ),
    "tests.test_envs:Silent": (
        "environment tests.test_envs:Silent must say in metadata['autoreset_mode'] how its vector resets, got None; "
        "set env.vectorization to sync to step single copies instead"
    ),
}


@pytest.mark.parametrize("id_", BAD)
def test_a_bad_environment_is_refused_in_one_sentence(id_: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)

    with pytest.raises(EnvError) as refused:
        measure_spec(EnvConfig(id=id_))

    assert str(refused.value) == BAD[id_]


def test_a_factory_that_returns_one_environment_twice_is_refused() -> None:
    with pytest.raises(EnvError, match="must be made anew by each call"):
        make_copies(CONFIG, lambda: SHARED)


def test_arguments_that_an_environment_does_not_take_are_named() -> None:
    with pytest.raises(EnvError, match=r"CartPole-v1 could not be made: TypeError: .*gravitas"):
        make_copies(EnvConfig(id="CartPole-v1", kwargs={"gravitas": 1.0}))


def test_a_vector_that_takes_no_time_limit_says_what_to_do() -> None:
    with pytest.raises(EnvError, match="takes no max_episode_steps in its own vector"):
        make_copies(EnvConfig(id="tests.test_envs:Silent", time_limit=3))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"copies": 0}, "env.copies must be >= 1, got 0"),
        ({"time_limit": -1}, "env.time_limit must be >= 0, got -1"),
        ({"reward_scale": 0.0}, "env.reward_scale must be > 0, got 0.0"),
        ({"reward_clip": -1.0}, "env.reward_clip must be >= 0, got -1.0"),
    ],
)
def test_a_setting_out_of_range_is_refused(setting: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        EnvConfig(id="CartPole-v1", **setting)

    assert str(refused.value) == sentence
