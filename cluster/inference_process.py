"""The inference role as a Ray process: questions are held, and no thread waits."""

import asyncio
import faulthandler
import os
import time
import traceback
from asyncio import Future, Task, TimerHandle
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from ray.exceptions import ObjectLostError

from actors.inference import Inference
from cluster.handles import ENDED, FETCH_EVERY_S, FETCH_SOON_S, Peer
from cluster.processes import Beat, Buffer
from starling import act_wire, wire
from starling.params import Params

FOLLOW_EVERY_S = 0.005  # between questions for newer parameters where unrolls are learned from soon
HOLD_S = 30.0  # after which a question that nobody could act on is given back, to be asked again


class Followed:
    """A ParamSource that holds what its process heard last."""

    def __init__(self) -> None:
        self.version = 0
        self._params: Params | None = None

    def fetch(self, newer_than: int) -> tuple[int, Params] | None:
        """Return the newest version, if it is newer."""
        if self._params is None or newer_than >= self.version:
            return None
        return self.version, self._params

    def hear(self, version: int, packed: Any) -> None:
        """Take over a version."""
        self.version, self._params = version, wire.decode_params(np.array(packed))


class Held(NamedTuple):
    """A question that is not answered yet."""

    answer: Future[Buffer | None]
    asked_at: float


class InferenceProcess:
    """Answers each question when its batch is acted on.

    All of it happens in Ray's event loop: a question that waits for others, or for newer parameters, is a future, and
    the supervisor is answered in between.
    """

    def __init__(
        self, name: str, build: Callable[..., Inference], generation: int, peers: Mapping[str, list[Peer]]
    ) -> None:
        faulthandler.enable()
        ((argument, (server,)),) = peers.items()
        self._server = server
        self._every_s = FOLLOW_EVERY_S if argument == "newest" else FETCH_EVERY_S
        self._wanted = asyncio.Event()
        self._params = Followed()
        self._role = build(generation=generation, **{argument: self._params})
        self._held: dict[tuple[int, int], Held] = {}  # by actor and group
        self._next_look: TimerHandle | None = None
        self._following: Task[None] | None = None
        self._beats = 0
        self._error = ""

    async def act(self, packed: Buffer) -> Buffer | None:
        """Answer a question when its batch has been acted on; None: it was not, and is to be asked again."""
        self._begin()
        question = act_wire.decode_question(packed)
        key = question.actor, question.group
        self._give_back(key)
        self._held[key] = Held(asyncio.get_running_loop().create_future(), time.monotonic())
        self._role.ask(question)
        if self._role.holds():
            self._wanted.set()
        self._look_in(0.0)  # behind those who have asked at the same time
        return await self._held[key].answer

    async def connect(self, peer: Peer) -> None:
        """Follow this successor of the parameter server from now on."""
        self._server = peer

    async def beat(self) -> Beat:
        """Return what the role did, and give back what nobody could act on for long."""
        self._begin()
        self._beats += 1
        for key, held in list(self._held.items()):
            if time.monotonic() - held.asked_at > HOLD_S:
                self._give_back(key)
        return Beat(os.getpid(), self._beats, self._role.stats(), self._role.step().waits, self._error)

    async def stop(self) -> Beat:
        """Say what is left to say; who is not answered by now will not be."""
        return await self.beat()

    def _begin(self) -> None:
        if self._following is None:
            self._following = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        """Hear of newer parameters as long as the process lives."""
        while True:
            server = self._server
            try:
                if server.handle is not None:
                    fresh = await server.handle.fetch.remote(self._params.version)
                    if fresh is not None:
                        version, packed = fresh
                        self._params.hear(version, await packed[0] if isinstance(packed, list) else packed)
                        self._look()
            except ObjectLostError:
                pass  # its owner died meanwhile: the next question hears of that
            except ENDED:
                if self._server is server:  # else its successor was introduced before its death was heard of
                    self._server = server._replace(handle=None)
            except Exception:  # nobody else would ever hear of it
                self._error = traceback.format_exc()
                return
            await self._pause()

    async def _pause(self) -> None:
        """Return when newer parameters are worth a question: soon, if somebody waits for them."""
        if self._role.holds():
            await asyncio.sleep(FETCH_SOON_S)
            return
        self._wanted.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wanted.wait(), self._every_s)

    def _look_in(self, seconds: float) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        self._next_look = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """Act on the batch that is due, if one is, and look again when the next one may be."""
        try:
            if self._role.due_in_s() == 0.0:
                for question, answer in self._role.act_on_due():
                    held = self._held.pop((question.actor, question.group))
                    _tell(held, act_wire.encode_answer(answer))
            if (due_in_s := self._role.due_in_s()) is not None:
                self._look_in(due_in_s)
        except Exception:  # the supervisor is told, and replaces this incarnation
            self._error = traceback.format_exc()

    def _give_back(self, key: tuple[int, int]) -> None:
        """Say of a question that nobody acted on it: it took too long, or a later one takes its place."""
        if (held := self._held.pop(key, None)) is not None:
            self._role.drop(*key)
            _tell(held, None)


def _tell(held: Held, answer: Buffer | None) -> None:
    if not held.answer.done():  # whoever asked may be gone
        held.answer.set_result(answer)
