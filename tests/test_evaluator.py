from functools import partial

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from actors.copies import Copies, EnvConfig
from actors.envs import make_copies
from actors.evaluator import Evaluator, EvaluatorConfig, episode_seed
from starling.errors import ConfigError, EnvError
from starling.metrics import no_clock
from starling.windows import Window
from tests.counting import Counting
from tests.playing import Explorer, Sines, params_of, q_of
from tests.test_actor import Source

EPISODES = 23


def copies_of(num: int, mode: AutoresetMode = AutoresetMode.DISABLED) -> Copies:
    return Copies(
        SyncVectorEnv([Counting] * num, copy=False, autoreset_mode=mode), EnvConfig(id="counting", copies=num)
    )


def evaluator_with(copies: Copies, source: Source | None = None, **settings: int) -> Evaluator:
    config = EvaluatorConfig(**{"episodes": EPISODES, "copies": copies.num_copies, **settings})
    return Evaluator(config, copies, Explorer(Window()), Sines(), source or Source(), no_clock)


def by_hand(version: int) -> tuple[list[float], list[int]]:
    """Play each held-out episode greedily in an environment of its own."""
    returns, lengths = [], []
    for episode in range(EPISODES):
        env = Counting()
        obs, _ = env.reset(seed=episode_seed(0, episode))
        total, steps, over = 0.0, 0, False
        while not over:
            action = int(q_of(obs.astype(np.float32)[None], version).argmax())
            obs, reward, terminated, truncated, _ = env.step(action + 5)
            total, steps, over = total + reward, steps + 1, terminated or truncated
        returns.append(total)
        lengths.append(steps)
    return returns, lengths


@pytest.mark.parametrize("mode", [AutoresetMode.DISABLED, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("num", [1, 4, 23, 40])
def test_every_held_out_episode_is_played_once_whatever_the_number_of_copies(num: int, mode: AutoresetMode) -> None:
    returns, lengths = by_hand(version=3)

    evaluation = evaluator_with(copies_of(num, mode)).evaluate(3, params_of(3))

    assert evaluation.version == 3
    assert evaluation.returns.tolist() == returns
    assert evaluation.lengths.tolist() == lengths
    assert evaluation.mean == pytest.approx(np.mean(returns))
    assert evaluation.std == pytest.approx(np.std(returns))


def test_the_same_version_is_worth_the_same_at_any_time() -> None:
    config = EvaluatorConfig(episodes=7, copies=5)
    copies = make_copies(EnvConfig(id="CartPole-v1", copies=5))
    evaluator = Evaluator(config, copies, Explorer(Window()), Sines(actions=2), Source(), no_clock)

    first = evaluator.evaluate(1, params_of(1))
    evaluator.evaluate(2, params_of(2))
    again = evaluator.evaluate(1, params_of(1))

    assert first.returns.tolist() == again.returns.tolist()
    assert len(set(first.returns)) > 1


def test_another_seed_holds_out_other_episodes() -> None:
    seeds = {episode_seed(seed, episode) for seed in range(3) for episode in range(100)}

    assert len(seeds) == 300


def test_the_evaluator_waits_until_a_version_is_due() -> None:
    source = Source()
    evaluator = evaluator_with(copies_of(4), source, every=10)

    waits = []
    for source.version in (0, 2, 11, 12):
        waits.append(evaluator.step().waits)

    assert waits == [
        "evaluator waits for version 1 of the parameters",
        "",
        "evaluator waits for version 12 of the parameters",
        "",
    ]
    assert [evaluation.version for evaluation in evaluator.take()] == [2, 12]
    assert evaluator.take() == []
    assert evaluator.stats()["counts"]["evaluations"] == 2


def test_only_a_version_better_than_all_before_brings_its_parameters() -> None:
    evaluator = evaluator_with(copies_of(4))

    evaluations = [evaluator.evaluate(version, params_of(version)) for version in (3, 3, 5)]

    assert evaluations[0].params is not None
    assert evaluations[1].params is None
    assert (evaluations[2].params is not None) == (evaluations[2].mean > evaluations[0].mean)


def test_an_episode_that_never_ends_is_an_error_that_says_what_to_do() -> None:
    copies = make_copies(EnvConfig(id="counting", copies=2), partial(Counting, endless=True))
    evaluator = evaluator_with(copies, episodes=2, max_steps=10)

    with pytest.raises(EnvError, match=r"did not end 2 of 2 held-out episodes within 10 steps; set env.time_limit"):
        evaluator.evaluate(1, params_of(1))


def test_a_setting_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluator.episodes must be >= 1, got 0"):
        EvaluatorConfig(episodes=0)
