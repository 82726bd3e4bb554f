"""The way to an inference role, over lines that are no network: what is asked again, and that nobody waits for ever."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from actors.central import CentralRollout
from actors.config import PlayConfig
from actors.envs import EnvConfig, make_copies
from actors.gathering import Gathering
from actors.inference import Inference
from actors.worker import Actor
from learner.inlet import version_of
from learner.lineup import Lineup
from learner.local import LocalInlet
from starling import act_wire, wire
from starling.errors import CodecError
from starling.metrics import no_clock
from starling.params import Params
from starling.questions import Answer, Question
from starling.types import Columns, Place, Unroll
from tests.counting import Counting
from tests.playing import Explorer, Sines, params_of
from tests.test_rollout import Counter, Recurrent

COPIES = 4


def lost() -> Any:
    from cluster.handles import LOST  # Ray reads its environment when it is imported, which other tests must set

    return LOST


class Server:
    """A ParamSource of which an inference role hears late: what it has is what somebody told it."""

    def __init__(self, version: int = 0) -> None:
        self.version = version

    def fetch(self, newer_than: int) -> tuple[int, Params] | None:
        return (self.version, params_of(self.version)) if self.version > newer_than else None


def role_of(server: Server, remembers: bool = False, actors: int = 1) -> Inference:
    acting: Any = Recurrent(None) if remembers else Explorer(None)
    forward: Any = Counter() if remembers else Sines()
    rng, spec = np.random.default_rng(0), make_copies(EnvConfig(id="counting", copies=1), Counting).spec
    return Inference("inference[0]", acting, spec, forward, server, actors, COPIES, rng, no_clock, Gathering(0.0))


class FakeLine:
    """A line to a role that acts when it is told to, dies, and has successors; answers come in order."""

    def __init__(self, role: Inference) -> None:
        self.role = "inference[0]"
        self.inference = role
        self.down_s: float | None = None
        self.sent = 0
        self._flying: deque[tuple[Question, list[Any]]] = deque()
        self._lost = 0

    def send(self, method: str, packed: Any) -> None:
        assert (method, self.down_s) == ("act", None)
        question = act_wire.decode_question(packed)
        for earlier, come in self._flying:
            if earlier.group == question.group and not come:
                come.append(None)  # a later one takes its place
        self.inference.ask(question)
        self._flying.append((question, []))
        self.sent += 1

    def answers(self, ready: Any = None) -> list[Any]:
        come, self._lost = [lost()] * self._lost, 0
        while self._flying and self._flying[0][1]:
            come.append(self._flying.popleft()[1][0])
        return come

    def in_flight(self) -> list[Any]:
        return list(self._flying)

    def __len__(self) -> int:
        return len(self._flying)

    def take(self, question: Question, answer: Answer) -> None:
        for asked, come in self._flying:
            if (asked.group, asked.number) == (question.group, question.number) and not come:
                come.append(act_wire.encode_answer(answer))
                return

    def give_back(self) -> None:
        for question, come in self._flying:
            if not come:
                come.append(None)
                self.inference.drop(question.actor, question.group)

    def die(self) -> None:
        self._lost += len(self._flying)
        self._flying.clear()
        self.down_s = 0.0

    def come_back(self, role: Inference) -> None:
        self.inference, self.down_s = role, None


def work(role: Inference, lines: list[FakeLine]) -> None:
    """Let the role act on what is due."""
    while role.due_in_s() == 0.0:
        for question, answer in role.act_on_due():
            lines[question.actor].take(question, answer)


def remote(line: FakeLine) -> Any:
    from cluster.remote_inference import RemoteInference

    as_line: Any = line
    return RemoteInference(as_line)


def question(group: int = 0, number: int = 1, newer_than: int = 0, **over: Any) -> Question:
    usual: dict[str, Any] = {"fresh": np.full(2, number == 1), "starting": np.empty(0, np.int64)}
    obs = np.arange(8, dtype=np.float32).reshape(2, 4) + number
    cut: dict[str, Any] = {"cut": np.empty(0, np.int64), "cut_obs": obs[:0]}
    return Question(
        actor=0, generation=0, group=group, number=number, obs=obs, newer_than=newer_than, **{**usual, **cut, **over}
    )


def same(one: Any, other: Any) -> bool:
    """Whether two questions or answers hold the same."""
    for name in one.__slots__:
        left, right = getattr(one, name), getattr(other, name)
        pairs = [(left, right)] if not isinstance(left, dict) else list(zip(left.values(), right.values(), strict=True))
        if isinstance(left, dict) and list(left) != list(right):
            return False
        if any(not np.array_equal(a, b) for a, b in pairs):
            return False
    return True


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"starting": np.array([1])},
        {"cut": np.array([0]), "cut_obs": np.ones((1, 4), np.float32)},
        {"mask": np.array([[True, False], [True, True]]), "newer_than": 7},
    ],
    ids=lambda over: ", ".join(over) or "plain",
)
def test_a_question_arrives_as_it_was_asked(over: dict[str, Any]) -> None:
    asked = question(group=1, number=3, **over)

    assert same(act_wire.decode_question(act_wire.encode_question(asked)), asked)


def test_an_answer_arrives_as_it_was_given() -> None:
    values = np.array([0.5, 1.5], np.float32)
    states: Columns = {"q": np.ones((1, 2, 3), np.float32)}
    whole = Answer(
        group=1,
        number=3,
        version=9,
        action=np.array([4, 5]),
        extras={"log_mu": values},
        taken=values,
        value=values,
        cut=values[:1],
        starts=states,
    )
    sorry = Answer(group=0, number=8, version=2, action=np.empty(0, np.int64), lost=True)

    for answer in (whole, sorry):
        assert same(act_wire.decode_answer(act_wire.encode_answer(answer)), answer)


def test_what_is_no_question_is_refused() -> None:
    answer = act_wire.encode_answer(Answer(group=0, number=8, version=2, action=np.empty(0, np.int64)))

    with pytest.raises(CodecError, match="buffer must hold a question for an action, got arrays"):
        act_wire.decode_question(answer)


def test_answers_come_when_somebody_acted() -> None:
    role = role_of(Server(version=5))
    line = FakeLine(role)
    source = remote(line)
    source.ask(question(group=0))
    source.ask(question(group=1))

    before, waits = source.answers(), source.waits()
    work(role, [line])

    assert (before, waits) == ([], "inference[0] to act")
    assert [(answer.group, answer.version) for answer in source.answers()] == [(0, 5), (1, 5)]
    assert source.answers() == []


def test_what_was_under_way_to_a_role_that_died_is_asked_of_its_successor() -> None:
    line = FakeLine(role_of(Server(version=5)))
    source = remote(line)
    source.ask(question(group=0, number=4))
    line.die()

    while_down, waits = source.answers(), source.waits()
    source.ask(question(group=1, number=4))
    line.come_back(successor := role_of(Server(version=6)))
    source.answers()
    work(successor, [line])

    assert (while_down, waits) == ([], "inference[0], down for 0 s")
    assert sorted((answer.group, answer.version, answer.lost) for answer in source.answers()) == [
        (0, 6, False),
        (1, 6, False),
    ]


def test_a_successor_says_of_networks_that_remember_what_is_lost() -> None:
    line = FakeLine(role_of(Server(version=5), remembers=True))
    source = remote(line)
    source.ask(question(number=4))
    line.die()
    source.answers()
    line.come_back(successor := role_of(Server(version=6), remembers=True))
    source.answers()
    work(successor, [line])

    (answer,) = source.answers()

    assert answer.lost


def test_a_question_that_is_given_back_is_asked_again() -> None:
    role = role_of(Server(version=5))
    line = FakeLine(role)
    source = remote(line)
    source.ask(question(newer_than=5))
    line.give_back()

    assert source.answers() == []
    assert source.waits() == "inference[0] to act by version 6 of the parameters"
    assert line.sent == 2


def test_a_later_question_of_a_group_is_answered_instead_of_its_older_one() -> None:
    role = role_of(Server(version=5))
    line = FakeLine(role)
    source = remote(line)
    source.ask(question(number=1))
    source.ask(question(number=2, fresh=np.ones(2, np.bool_)))
    work(role, [line])

    assert [answer.number for answer in source.answers()] == [2]
    assert line.sent == 2


def test_answers_are_waited_for_only_after_they_were_looked_for_in_vain() -> None:
    line = FakeLine(role_of(Server(version=5)))
    source = remote(line)
    source.ask(question())
    before = source.is_awaited()
    source.answers()

    assert [before, source.is_awaited(), source.is_awaited()] == [False, True, False]


class World:
    """Actors in lockstep, the role that acts for them, and a learner, of which one thing happens at a time."""

    def __init__(self, remembers: bool) -> None:
        self.remembers = remembers
        self.version = 1  # of the learner, and published
        self.lineup = Lineup(2, no_clock)
        self.server = Server(1)
        self.role = role_of(self.server, remembers, actors=2)
        self.lines = [FakeLine(self.role) for _ in range(2)]
        self.generations = [0, 0]
        self.actors = [self.actor(index) for index in range(2)]
        self.updates = 0
        self.learned: list[list[Unroll]] = []

    def actor(self, index: int) -> Actor:
        groups = [make_copies(EnvConfig(id="counting", copies=COPIES // 2), Counting) for _ in range(2)]
        acting: Any = Recurrent(None) if self.remembers else Explorer(None)
        place, seed = Place(index, 2, COPIES), np.random.SeedSequence([index, self.generations[index]])
        generation, way = self.generations[index], remote(self.lines[index])
        player = CentralRollout(groups, acting, way, place, seed, generation, ahead=False)
        return Actor(PlayConfig(unroll_length=2), player, Late(self), no_clock)

    def moves(self) -> dict[str, Callable[[], None]]:
        """Return what anybody can do next."""
        return {
            "actor 0": lambda: self._step(0),
            "actor 1": lambda: self._step(1),
            "act": lambda: work(self.role, self.lines),
            "hear": lambda: setattr(self.server, "version", self.version),
            "learn": self._learn,
        }

    def disturbances(self) -> dict[str, Callable[[], None]]:
        """Return what can befall anybody."""
        return {
            "replace actor 0": lambda: self._replace_actor(0),
            "replace actor 1": lambda: self._replace_actor(1),
            "replace inference": self._replace_inference,
            "replace learner": self._replace_learner,
            "give back": lambda: [line.give_back() for line in self.lines] and None,
        }

    def _step(self, index: int) -> None:
        self.actors[index].step()

    def _learn(self) -> None:
        unrolls = self.lineup.take(self.version)
        if not isinstance(unrolls, str):
            assert {version_of(unroll) for unroll in unrolls} == {self.version}
            self.learned.append(unrolls)
            self.version, self.updates = self.version + 1, self.updates + 1

    def _replace_actor(self, index: int) -> None:
        self.generations[index] += 1
        self.lines[index] = FakeLine(self.role)
        self.actors[index] = self.actor(index)

    def _replace_inference(self) -> None:
        self.server = Server(0)
        self.role = role_of(self.server, self.remembers, actors=2)
        for line in self.lines:
            line.die()
            line.come_back(self.role)

    def _replace_learner(self) -> None:
        self.lineup, self.version = Lineup(2, no_clock), self.version + 1


class Late:
    """A ReplaySink to the learner that is there now."""

    def __init__(self, world: World) -> None:
        self._world = world

    def insert(self, unroll: Unroll) -> None:
        LocalInlet(self._world.lineup).insert(unroll)

    def must_wait(self) -> str:
        return ""


@pytest.mark.parametrize("remembers", [False, True], ids=["forgetful", "remembering"])
@pytest.mark.parametrize("seed", range(25))
def test_in_lockstep_nobody_waits_for_ever_whoever_is_replaced_whenever(seed: int, remembers: bool) -> None:
    rng, world = np.random.default_rng(seed), World(remembers)
    for _ in range(8):
        for _ in range(int(rng.integers(1, 30))):
            moves = list(world.moves().values())
            moves[rng.integers(len(moves))]()
        befalls = list(world.disturbances().values())
        befalls[rng.integers(len(befalls))]()

    before = world.updates
    for _ in range(40):
        for move in world.moves().values():
            move()

    assert world.updates >= before + 3


def test_in_lockstep_every_version_is_learned_from_once() -> None:
    world = World(remembers=False)
    for _ in range(60):
        for move in world.moves().values():
            move()

    versions = [version_of(unrolls[0]) for unrolls in world.learned]
    assert versions == list(range(1, len(versions) + 1))
    assert len(versions) > 5
    assert all(np.unique(unroll.columns["version"]).size == 1 for unrolls in world.learned for unroll in unrolls)


class Handle:
    """A parameter server as an inference role's process reaches it; a test answers its questions."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[asyncio.Future[Any]] = asyncio.Queue()
        self.fetch = self

    def remote(self, newer_than: int) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(answer)
        return answer

    async def dies(self, why: Exception) -> None:
        (await self.asked.get()).set_exception(why)

    async def answers(self, version: int, packed: Any) -> None:
        (await self.asked.get()).set_result((version, packed))


def peer(handle: Handle, generation: int = 0) -> Any:
    from cluster.handles import Peer

    return Peer("param_server[0]", handle, generation)


def process_of(handle: Handle) -> Any:
    from cluster.inference_process import InferenceProcess

    def build(generation: int, newest: Any) -> Inference:
        return role_of(newest)

    return InferenceProcess("inference[0]", build, 0, {"newest": [peer(handle)]})


async def version_that_acts(process: Any) -> int:
    answer = await process.act(act_wire.encode_question(question()))
    return act_wire.decode_answer(answer).version


def run_scene(scene: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(scene, 60.0))  # a scene that never ends has failed


def test_a_successor_of_the_parameter_server_is_followed_also_if_it_comes_before_the_death_is_heard_of() -> None:
    from ray.exceptions import RayActorError

    async def scene() -> int:
        first, second = Handle(), Handle()
        process = process_of(first)
        await process.beat()
        dying = await first.asked.get()
        await process.connect(peer(second, 1))
        dying.set_exception(RayActorError())
        await second.answers(7, wire.encode_params(params_of(7)))
        return await version_that_acts(process)

    assert run_scene(scene()) == 7


def test_parameters_that_were_lost_on_their_way_are_asked_for_again() -> None:
    from ray.exceptions import ObjectLostError

    async def scene() -> int:
        server = Handle()
        process = process_of(server)
        await process.beat()
        lost = asyncio.get_running_loop().create_future()
        lost.set_exception(ObjectLostError("00", None, ""))
        await server.answers(6, [lost])
        await server.answers(7, wire.encode_params(params_of(7)))
        return await version_that_acts(process)

    assert run_scene(scene()) == 7


def test_a_role_that_cannot_follow_the_parameters_any_more_says_so() -> None:
    async def scene() -> str:
        process = process_of(server := Handle())
        await process.beat()
        await server.answers(7, np.zeros(3, np.uint8))
        while not (beat := await process.beat()).error:
            await asyncio.sleep(0)
        return str(beat.error)

    assert "CodecError" in run_scene(scene())
