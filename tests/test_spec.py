from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Text

from actors.envs import EnvConfig, make_copies, measure_spec
from starling.errors import EnvError
from starling.spec import ArraySpec, Spec


class Echo(gymnasium.Env[Any, Any]):
    """Has any two spaces, observes the largest of what it may, and remembers what it was told to do."""

    def __init__(self, obs: Space[Any], action: Space[Any]) -> None:
        self.observation_space = obs
        self.action_space = action
        self.told: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._largest(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.told = action
        return self._largest(), 0.0, False, False, {}

    def _largest(self) -> Any:
        match self.observation_space:
            case Discrete() as space:
                return space.start + space.n - 1
            case MultiDiscrete() as space:
                return space.start + space.nvec - 1
            case MultiBinary() as space:
                return np.ones(space.shape, np.int8)
            case Box() as space:
                return space.high
        return None


ACTIONS = Discrete(2)
CONFIG = EnvConfig(id="echo", copies=2)


def spec_of(obs: Space[Any], action: Space[Any] = ACTIONS) -> Spec:
    return measure_spec(CONFIG, lambda: Echo(obs, action))


@pytest.mark.parametrize(
    ("space", "obs", "classes"),
    [
        (Box(0, 255, (3, 8, 8), np.uint8), ArraySpec((3, 8, 8), "uint8"), ()),
        (Box(-1, 1, (5,), np.float64), ArraySpec((5,), "float32"), ()),
        (Box(-9, 9, (2, 2), np.int32), ArraySpec((2, 2), "float32"), ()),
        (Discrete(7, start=-3), ArraySpec((), "int64"), (7,)),
        (MultiDiscrete([3, 4], start=[1, -1]), ArraySpec((2,), "int64"), (3, 4)),
        (MultiBinary(3), ArraySpec((3,), "int8"), (2, 2, 2)),
        (MultiBinary([2, 2]), ArraySpec((2, 2), "int8"), (2, 2, 2, 2)),
    ],
    ids=str,
)
def test_observations_are_measured(space: Space[Any], obs: ArraySpec, classes: tuple[int, ...]) -> None:
    spec = spec_of(space)
    first = make_copies(CONFIG, lambda: Echo(space, ACTIONS)).reset([1, 2])

    assert (spec.obs, spec.classes) == (obs, classes)
    assert (first.shape, first.dtype) == ((2, *obs.shape), obs.dtype)
    if classes:
        assert first[0].ravel().tolist() == [count - 1 for count in classes]  # the largest value, counted from 0


def test_discrete_actions_are_counted_from_zero_and_given_from_their_start() -> None:
    env = Echo(ACTIONS, Discrete(4, start=3))
    copies = make_copies(EnvConfig(id="echo", copies=1), lambda: env)
    copies.reset([1])

    copies.step(np.array([2]))

    assert copies.spec.num_actions == 4
    assert env.told == 5


def test_several_actions_at_once_are_a_vector_counted_from_their_start() -> None:
    env = Echo(ACTIONS, MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, 3]]))
    copies = make_copies(EnvConfig(id="echo", copies=1), lambda: env)
    copies.reset([1])

    copies.step(np.array([[1, 2, 3, 4]]))

    assert (copies.spec.action, copies.spec.choices) == (ArraySpec((4,), "int64"), (2, 3, 4, 5))
    assert env.told.tolist() == [[1, 3], [5, 7]]


def test_a_box_of_any_shape_is_a_vector() -> None:
    env = Echo(ACTIONS, Box(-2.0, 2.0, (2, 2)))
    copies = make_copies(EnvConfig(id="echo", copies=1), lambda: env)
    copies.reset([1])

    copies.step(np.array([[-1.0, 0.0, 0.5, 3.0]], np.float32))

    assert copies.spec.action == ArraySpec((4,), "float32")
    assert env.told.tolist() == [[-2.0, 0.0], [1.0, 2.0]]


def test_actions_between_minus_one_and_one_span_a_bounded_box_and_leave_it_nowhere() -> None:
    low, high = np.array([-2.0, 0.0, -1.0, -np.inf]), np.array([2.0, 10.0, np.inf, np.inf])
    env = Echo(ACTIONS, Box(low, high, dtype=np.float64))
    copies = make_copies(EnvConfig(id="echo", copies=1), lambda: env)
    copies.reset([1])
    told = []

    for action in ([-1.0, -1.0, 0.0, 0.0], [1.0, 0.0, 7.0, -7.0], [9.0, -9.0, -9.0, 9.0]):
        copies.step(np.array([action], np.float32))
        told.append(env.told.tolist())

    assert told == [[-2.0, 0.0, 0.0, 0.0], [2.0, 5.0, 7.0, -7.0], [2.0, 0.0, -1.0, 9.0]]
    assert env.told.dtype == np.float64
    assert copies.spec.action == ArraySpec((4,), "float32")
    assert (copies.spec.low, copies.spec.high) == (tuple(low), tuple(high))


@pytest.mark.parametrize(
    ("obs", "action", "sentence"),
    [
        (Dict({"a": ACTIONS}), ACTIONS, "environment echo has observations of the space Dict, .*FlattenObservation"),
        (Text(3), ACTIONS, "environment echo has observations of the space Text, "),
        (ACTIONS, Text(3), "environment echo has actions of the space Text, .*ActionWrapper"),
    ],
)
def test_a_space_that_is_not_supported_is_named_with_a_way_out(
    obs: Space[Any], action: Space[Any], sentence: str
) -> None:
    with pytest.raises(EnvError, match=sentence):
        spec_of(obs, action)


def test_observations_of_another_shape_than_promised_are_refused() -> None:
    class Liar(gymnasium.vector.VectorEnv[Any, Any, Any]):
        def __init__(self, num_envs: int) -> None:
            self.num_envs = num_envs
            self.metadata = {"autoreset_mode": "NextStep"}
            self.single_observation_space = Box(0, 1, (3,))
            self.single_action_space = ACTIONS

        def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            return np.zeros((self.num_envs, 4)), {}

    with pytest.raises(EnvError, match=r"promised observations of shape \(1, 3\), but gave \(1, 4\)"):
        measure_spec(EnvConfig(id="liar"), Liar)


def test_an_environments_own_time_limit_is_found() -> None:
    assert measure_spec(EnvConfig(id="CartPole-v1")).max_episode_steps == 500
    assert measure_spec(EnvConfig(id="Pendulum-v1")).max_episode_steps == 200
    assert measure_spec(EnvConfig(id="Pendulum-v1", time_limit=9)).max_episode_steps == 9
