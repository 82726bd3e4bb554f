"""The inference role: acts for copies of many actors as each of them would by itself."""

from typing import Any

import numpy as np
import pytest

from actors.gathering import Gathering
from actors.inference import Inference
from actors.inference_config import InferenceConfig
from cluster.config import load
from starling.errors import ConfigError
from starling.flags import split
from starling.metrics import no_clock
from starling.networks import Lstm, Mlp, Network
from starling.networks.arrays import first_params
from starling.networks.description import Linear
from starling.networks.forward import build_forward
from starling.params import Params
from starling.questions import Question
from starling.spec import ArraySpec, Spec
from starling.types import Act, Array, Columns, Outputs, Place
from starling.windows import Window
from tests.playing import Explorer

SPEC = Spec(env="made up", obs=ArraySpec((2,), "float32"), action=ArraySpec((), "int64"), num_actions=3)
NETWORKS = {"q": Network(torso=Mlp(hidden=(8,)), heads={"q": Linear(outputs=3)}, memory=Lstm(size=4))}
NOBODY = np.empty(0, np.int64)


class Deciding(Explorer):
    """Judges, remembers, and tells how much each copy would explore."""

    def acting(self, spec: Spec) -> Any:
        return NETWORKS

    def columns(self, spec: Spec) -> dict[str, ArraySpec]:
        return {"strength": ArraySpec((), "float32")}

    def explore(self, place: Place) -> Any:
        return (100.0 * place.actor + np.arange(place.num_copies)).astype(np.float32)

    def act(self, outputs: Outputs, explore: Any, rng: np.random.Generator) -> Act:
        q = outputs["q"] if "mask" not in outputs else np.where(outputs["mask"], outputs["q"], -np.inf)
        return Act(q.argmax(1), {"strength": explore}, q.max(1))


class Versions:
    """A ParamSource that has what it was last given."""

    def __init__(self, version: int = 1) -> None:
        self.version = version
        self.params = first_params(NETWORKS, SPEC, np.random.default_rng(5))

    def fetch(self, newer_than: int) -> tuple[int, Params] | None:
        return (self.version, self.params) if self.version > newer_than else None


def inference(window: Window | None = Window()) -> Inference:  # noqa: B008 (it is frozen)
    acting = Deciding(window)
    forward = build_forward(NETWORKS, SPEC)
    made = Inference(
        "inference[0]", acting, SPEC, forward, Versions(), 3, 4, np.random.default_rng(0), no_clock, Gathering(0.0)
    )
    made.refresh()
    return made


def question(actor: int, group: int, number: int, **over: Any) -> Question:
    obs = np.random.default_rng([actor, group, number]).normal(size=(2, 2)).astype(np.float32)
    usual: dict[str, Any] = {
        "generation": 0,
        "obs": obs,
        "fresh": np.full(2, number == 1),
        "starting": NOBODY,
        "cut": NOBODY,
        "cut_obs": obs[:0],
    }
    return Question(actor=actor, group=group, number=number, **{**usual, **over})


def test_a_batch_of_many_is_answered_as_each_would_be_alone() -> None:
    together, alone = inference(), inference()

    for number in (1, 2, 3):
        questions = [
            question(
                actor,
                group,
                number,
                fresh=np.array([number == 1, number != 2]),
                starting=np.array([1]),
                cut=np.arange(group * (number == 3)),
                cut_obs=np.ones((group * (number == 3), 2), np.float32),
            )
            for actor in range(3)
            for group in range(2)
        ]
        answers = together.act(questions)
        expected = [alone.act([one])[0] for one in questions]

        for answer, other in zip(answers, expected, strict=True):
            assert (answer.group, answer.number, answer.version, answer.lost) == (other.group, number, 1, False)
            assert answer.action.tolist() == other.action.tolist()
            assert answer.extras["strength"].tolist() == other.extras["strength"].tolist()
            for name in ("taken", "value", "cut"):
                np.testing.assert_allclose(getattr(answer, name), getattr(other, name), rtol=1e-5)
            np.testing.assert_allclose(answer.starts["q"], other.starts["q"], rtol=1e-5)


def test_a_memory_runs_on_from_question_to_question_and_begins_at_nothing_with_an_episode() -> None:
    role, forward = inference(), build_forward(NETWORKS, SPEC)
    forward.load(Versions().params)
    state: Columns = {"q": np.zeros((2, 2, 4), np.float32)}
    for number in range(1, 6):
        asked = question(0, 0, number, fresh=np.array([number == 1, number in (1, 4)]), starting=np.arange(2))
        if number == 4:
            state["q"][1] = 0.0
        before = state["q"]
        outputs, state = forward.recall(asked.obs, state)

        (answer,) = role.act([asked])

        np.testing.assert_allclose(answer.starts["q"], before, atol=1e-6)
        assert answer.action.tolist() == outputs["q"].argmax(1).tolist()


def test_a_truncated_episode_is_judged_with_all_that_was_seen_of_it() -> None:
    role, forward = inference(), build_forward(NETWORKS, SPEC)
    forward.load(Versions().params)
    first, last = question(0, 0, 1), np.full((1, 2), 0.7, np.float32)
    _, state = forward.recall(first.obs, {"q": np.zeros((2, 2, 4), np.float32)})
    outputs, _ = forward.recall(last, {"q": state["q"][1:]})

    role.act([first])
    (answer,) = role.act([question(0, 0, 2, fresh=np.array([False, True]), cut=np.array([1]), cut_obs=last)])

    np.testing.assert_allclose(answer.cut, outputs["q"].max(1), rtol=1e-5)


def test_each_copy_explores_by_its_place_among_its_actors_copies() -> None:
    answers = inference().act([question(2, 1, 1), question(0, 0, 1)])

    assert [answer.extras["strength"].tolist() for answer in answers] == [[202.0, 203.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        ({}, False),
        ({"number": 4}, True),  # one was left out
        ({"number": 2}, True),  # it was acted on before
        ({"generation": 1}, True),  # of an actor that has begun anew
        ({"generation": 1, "fresh": np.array([True, True])}, False),
        ({"number": 9, "fresh": np.array([True, True])}, False),
        ({"actor": 1}, True),
        ({"group": 1}, True),
    ],
    ids=str,
)
def test_what_was_not_seen_is_lost_unless_an_episode_begins(changed: dict[str, Any], lost: bool) -> None:
    role = inference()
    role.act([question(0, 0, 1)])
    role.act([question(0, 0, 2)])

    (answer,) = role.act([question(**{"actor": 0, "group": 0, "number": 3, **changed})])

    assert answer.lost is lost
    assert role.stats()["counts"].get("streams_lost", 0) == 2 * lost


def test_an_actor_that_was_replaced_does_not_disturb_its_successor() -> None:
    role = inference()
    role.act([question(0, 0, 1, generation=4)])

    (late,) = role.act([question(0, 0, 1, generation=3)])
    (answer,) = role.act([question(0, 0, 2, generation=4)])

    assert (late.lost, answer.lost) == (True, False)


def test_only_those_whose_memory_is_lost_are_told_so() -> None:
    answers = inference().act([question(0, 0, 7), question(1, 0, 1)])

    assert {answer.number: answer.lost for answer in answers} == {7: True, 1: False}


def test_networks_that_learn_from_whole_unrolls_judge_nothing() -> None:
    (answer,) = inference(window=None).act([question(0, 0, 1)])

    assert answer.value is None


def test_only_allowed_actions_are_taken() -> None:
    masks = [np.eye(3, dtype=np.bool_)[[choice, choice]] for choice in (2, 0)]

    answers = inference().act([question(actor, 0, 1, mask=mask) for actor, mask in enumerate(masks)])

    assert [answer.action.tolist() for answer in answers] == [[2, 2], [0, 0]]


def test_a_role_says_what_it_waits_for_and_how_many_copies_it_acted_for_at_once() -> None:
    role = Inference(
        "inference[0]",
        Deciding(Window()),
        SPEC,
        build_forward(NETWORKS, SPEC),
        source := Versions(version=0),
        3,
        4,
        np.random.default_rng(0),
        no_clock,
        Gathering(0.0),
    )
    before = role.step().waits
    source.version = 6
    idle = role.step().waits
    role.act([question(0, 0, 1), question(1, 0, 1)])
    role.act([question(0, 0, 2)])
    work = role.step().work

    stats = role.stats()
    assert before == "inference[0] waits for the first parameters"
    assert idle == "inference[0] waits for observations"
    assert work == {"batches": 2}
    assert {name: stats["counts"][name] for name in ("batches", "questions", "copies")} == {
        "batches": 2,
        "questions": 3,
        "copies": 6,
    }
    assert sum(stats["histograms"]["batch_copies"]) == 2
    assert stats["gauges"]["version"] == 6


def test_a_restart_acts_by_parameters_that_are_fetched_again_and_remembers_nothing() -> None:
    role = inference()
    role.act([question(0, 0, 1)])

    role.restart(np.random.default_rng(0))
    version = role.version
    role.refresh()
    (answer,) = role.act([question(0, 0, 2)])

    assert (version, role.version, answer.lost) == (0, 1, True)


@pytest.mark.parametrize(
    ("name", "value", "rule"), [("num", 0, ">= 1"), ("groups", 0, ">= 1"), ("deadline_s", -1.0, ">= 0")]
)
def test_a_setting_out_of_range_is_refused(name: str, value: Any, rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"inference\.{name} must be {rule}, got {value}"):
        InferenceConfig(**{name: value})


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--inference.groups", "3"], "inference.groups must divide env.copies = 16 into groups of one size, got 3"),
        (["--inference.num", "3"], "inference.num must be at most actor.num = 2, got 3"),
    ],
)
def test_who_acts_for_actors_must_fit_them(flags: list[str], sentence: str) -> None:
    def of(placement: str) -> object:
        return load("cartpole", split(["--inference.placement", placement, *flags])[1])

    of("local")  # where nobody acts for anybody it does not matter
    with pytest.raises(ConfigError) as refused:
        of("central")

    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize("section", ["learner", "inference"])
def test_a_gpu_that_is_not_there_is_missed_before_a_run_begins(section: str) -> None:
    import torch

    from cluster.preflight import refuse_what_cannot_run

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    flags = ["--inference.placement", "central", f"--{section}.device", "cuda"]

    with pytest.raises(ConfigError, match=f"{section}.device must be auto or cpu where there is no GPU, got cuda"):
        refuse_what_cannot_run(load("cartpole-a2c", split(flags)[1]))


def test_torch_on_the_processor_gives_what_numpy_gives() -> None:
    from starling.networks.torch_forward import TorchForward

    params = Versions().params
    obs: Array = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    state = {"q": np.random.default_rng(2).normal(size=(5, 2, 4)).astype(np.float32)}
    ones = []
    for forward in (build_forward(NETWORKS, SPEC, "auto"), TorchForward(NETWORKS, SPEC, "cpu")):
        forward.load(params)
        ones.append(forward.recall(obs, state))

    (numpy_out, numpy_state), (torch_out, torch_state) = ones
    np.testing.assert_allclose(numpy_out["q"], torch_out["q"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(numpy_state["q"], torch_state["q"], rtol=1e-4, atol=1e-5)
