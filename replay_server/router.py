"""The learner's side of the replay service: makes many shards look like one big tree."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay_server.config import ReplayConfig
from replay_server.priorities import largest
from replay_server.rate_limiter import RateLimiter, insert_limits
from replay_server.sharding import allocate, importance_weights
from starling.metrics import Clock, Meter
from starling.state import State, rng_meta, set_rng
from starling.types import ReplaySource, Sampled, SampleReply, SampleRequest, Ticket, spread

Changed = tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass(slots=True)
class Draw:
    """Batches that were asked for together, with one request to each shard."""

    asked: NDArray[np.int64]  # [batches, shards] windows
    shares: NDArray[np.float64]  # [shards] of a batch, in expectation
    replies: dict[int, SampleReply] = field(default_factory=dict)


class Router:
    """Keeps up to `depth` draws of batches ahead of the learner, in flight over all shards.

    Owns the samples-per-insert account: a window counts as sampled from the moment at which it is asked for, so
    nothing that is in flight is forgotten. Batches are drawn as from one tree over all shards, whatever a shard's
    state has become by the time it is asked; their weights are divided by the largest of the batch. When it must
    wait it still asks each shard, for no windows and once at a time, so that writers learn of new credit.
    Called from one thread.
    """

    def __init__(
        self,
        source: ReplaySource,
        config: ReplayConfig,
        rng: np.random.Generator,
        clock: Clock,
        batch_size: int,
        batches_per_request: int = 1,
        depth: int = 2,
        takes_over: bool = False,
    ) -> None:
        self._source = source
        self._config = config
        self._batch_size = batch_size
        self._batches_per_request = batches_per_request
        self._depth = depth
        self._rng = rng
        self._limiter = RateLimiter(
            samples_per_insert=config.samples_per_insert,
            min_windows=config.min_windows,
            batch=batch_size,
            tolerance=config.tolerance,
        )
        shards = source.num_shards
        self._masses = np.zeros(shards)  # as last heard of, like the next two
        self._sizes = np.zeros(shards, np.int64)
        self._inserted = [0] * shards
        self._heard = [(0, 0)] * shards  # each shard's origin and own count, of which `_inserted` adds up the growth
        self._silent: set[int] = set()  # shards that did not answer when they were last asked
        self._sampled = 0
        self._settled = (0, 0)  # windows inserted and sampled before the contents were lost: no debt of anybody's
        self._takes_over = takes_over  # from a router that died: what was inserted until now is no debt
        self._strangers = set(range(shards)) if takes_over else set[int]()  # not heard yet
        self._largest_priority = 1.0
        self._asked: list[deque[Draw | None]] = [deque() for _ in range(shards)]  # None: asked for no windows
        self._changed: list[list[Changed]] = [[] for _ in range(shards)]
        self._batches_in_flight = 0
        self._ready: deque[Sampled] = deque()
        self._meter = Meter(clock)

    def take(self) -> Sampled | str:
        """Return the next batch, or say who waits for whom."""
        for _ in range(3):  # the first answers may only say what the shards hold
            self._request()
            if self._ready:
                self._meter.count("batches")
                return self._ready.popleft()
            if not self._receive():  # only when nothing is left, since looking for answers costs a call
                break
        return self._reason()

    def update_priorities(self, ticket: Ticket, priorities: NDArray[np.float64]) -> None:
        """Keep the priorities of a batch's windows for the next request to their shards."""
        priorities = np.asarray(priorities, np.float64)
        self._largest_priority = largest(priorities, self._largest_priority)
        for shard, changed in enumerate(self._changed):
            here = ticket.shards == shard
            changed.append((ticket.keys[here], priorities[here]))

    def state(self) -> State:
        """Return the account as if all that is in flight or ready had never been asked for."""
        drawn = {id(draw): draw for asked in self._asked for draw in asked if draw is not None}
        back = sum(int(draw.asked.sum()) for draw in drawn.values()) + sum(len(s.ticket.keys) for s in self._ready)
        arrays = {"masses": self._masses.copy(), "sizes": self._sizes.copy()}
        for shard, changed in enumerate(self._changed):
            arrays[f"changed/{shard}/keys"], arrays[f"changed/{shard}/priorities"] = _behind_one_another(changed)
        meta = {
            "sampled": self._sampled - back,
            "inserted": list(self._inserted),
            "heard": [list(heard) for heard in self._heard],
            "settled": list(self._settled),
            "samples_per_insert": self._config.samples_per_insert,
            "largest_priority": self._largest_priority,
            "rng": rng_meta(self._rng),
        }
        return State(arrays, meta)

    def restore(self, state: State) -> None:
        """Go on with an account, and drop what was fetched ahead; called when no shard owes an answer.

        The shards may be more or fewer than they were: then their windows have other keys, and what was said of the
        old ones is forgotten.
        """
        self._receive()
        assert not any(self._asked), "nothing may be in flight"
        self._ready.clear()
        if len(state.meta["inserted"]) == len(self._inserted):
            self._restore_shards(state)
        else:
            self._inserted[0] = sum(state.meta["inserted"])  # only the sum counts
        self._sampled = state.meta["sampled"]
        inserted, sampled = state.meta.get("settled", (0, 0))
        self._settled = inserted, sampled
        if state.meta["samples_per_insert"] != self._config.samples_per_insert:
            self._owe_nothing()  # a new ratio is no debt for what is past
        self._largest_priority = state.meta["largest_priority"]
        set_rng(self._rng, state.meta["rng"])

    def begin_anew(self) -> None:
        """Wait for `min_windows` again, since what the shards held is lost; what was done stays counted."""
        self._settled = sum(self._inserted), self._sampled
        self._masses, self._sizes = np.zeros_like(self._masses), np.zeros_like(self._sizes)
        self._heard = [(0, 0)] * len(self._heard)
        self._changed = [[] for _ in self._changed]

    def stats(self) -> dict[str, Any]:
        """Return what was sampled, against how much was inserted, and how many shards do not answer."""
        inserted = sum(self._inserted)
        gauges = {
            "sampled": self._sampled,
            "inserted": inserted,
            "samples_per_insert": self._sampled / max(1, inserted),
            "degraded_shards": len(self._silent),
            "windows": int(self._sizes.sum()),
            "beta": self._config.beta_at(self._sampled),
        }
        for name, value in gauges.items():
            self._meter.gauge(name, value)
        return self._meter.snapshot()

    def _restore_shards(self, state: State) -> None:
        self._masses, self._sizes = state.arrays["masses"].copy(), state.arrays["sizes"].copy()
        for shard in range(len(self._changed)):
            keys, priorities = (state.arrays[f"changed/{shard}/{name}"] for name in ("keys", "priorities"))
            self._changed[shard] = [(keys, priorities)]
        self._inserted = list(state.meta["inserted"])
        self._heard = [(origin, own) for origin, own in state.meta["heard"]]

    def _request(self) -> None:
        while self._has_room():
            batches = self._batches_allowed()
            if not batches:
                self._ask_for_nothing()
                return
            self._ask_for(batches)

    def _has_room(self) -> bool:
        ahead = self._batches_in_flight + len(self._ready)
        return ahead <= (self._depth - 1) * self._batches_per_request

    def _batches_allowed(self) -> int:
        if not self._sizes.any() or self._takes_over:
            return 0
        inserted, sampled = self._settled
        windows = self._limiter.sampleable(sum(self._inserted) - inserted, self._sampled - sampled)
        return min(self._batches_per_request, windows // self._batch_size)

    def _ask_for(self, batches: int) -> None:
        masses = np.where(self._sizes > 0, self._masses, 0.0)
        shares = masses / masses.sum()
        asked = np.stack([allocate(self._batch_size, shares, self._rng.random()) for _ in range(batches)])
        draw = Draw(asked, shares)
        self._sampled += int(asked.sum())
        self._batches_in_flight += batches
        limits = self._insert_limits()
        for shard, limit in enumerate(limits):
            self._send(shard, asked[:, shard].tolist(), limit, draw)

    def _ask_for_nothing(self) -> None:
        for shard, limit in enumerate(self._insert_limits()):
            if not self._asked[shard]:
                self._send(shard, [], limit, None)

    def _insert_limits(self) -> list[int]:
        """Return each shard's limit, in its own count."""
        inserted, sampled = self._settled
        limits = insert_limits(inserted + self._limiter.insert_limit(self._sampled - sampled), self._inserted)
        shards = zip(limits, self._inserted, self._heard, strict=True)
        return [own + limit - inserted for limit, inserted, (_, own) in shards]

    def _send(self, shard: int, counts: list[int], limit: int, draw: Draw | None) -> None:
        keys, priorities = _behind_one_another(self._changed[shard])
        self._changed[shard] = []
        request = SampleRequest(
            counts=counts,
            keys=keys,
            priorities=priorities,
            insert_limit=limit,
            largest_priority=self._largest_priority,
        )
        self._asked[shard].append(draw)
        self._source.request(shard, request)
        self._meter.count("requests")

    def _receive(self) -> bool:
        """Take what has come, and say whether anything has."""
        replies = self._source.replies()
        for shard, reply in replies:
            draw = self._asked[shard].popleft()
            if reply is None:
                self._masses[shard], self._sizes[shard] = 0.0, 0
                self._silent.add(shard)
            else:
                self._silent.discard(shard)
                self._hear(shard, reply)
            self._end_takeover()
            if draw is None:
                continue
            draw.replies[shard] = reply or nothing(len(draw.asked))
            if len(draw.replies) == len(self._asked):
                self._assemble(draw)
        return bool(replies)

    def _hear(self, shard: int, reply: SampleReply) -> None:
        """Note what a shard holds; what it took before it was replaced stays in the account."""
        self._masses[shard], self._sizes[shard] = reply.mass, reply.size
        origin, own = self._heard[shard]
        before = self._line()
        self._inserted[shard] += reply.inserted - (own if reply.origin == origin else 0)
        self._heard[shard] = reply.origin, reply.inserted
        if shard in self._strangers:
            self._strangers.remove(shard)
            self._sampled += self._line() - before  # also of one that was dead when the others were settled

    def _end_takeover(self) -> None:
        """Begin to sample once every shard was heard, but for those that do not answer."""
        if self._takes_over and self._strangers <= self._silent:
            self._takes_over = False
            self._owe_nothing()

    def _line(self) -> int:
        """Return how many windows count as sampled when nothing is owed."""
        inserted, sampled = self._settled
        return sampled + self._limiter.settled(sum(self._inserted) - inserted)

    def _owe_nothing(self) -> None:
        self._sampled = self._line()

    def _assemble(self, draw: Draw) -> None:
        replies = [draw.replies[shard] for shard in range(len(self._asked))]
        came = np.array([reply.counts for reply in replies]).T  # [batches, shards]
        self._sampled -= int((draw.asked - came).sum())  # of a shard that has become empty
        self._batches_in_flight -= len(draw.asked)
        weights = self._weights(draw, replies)
        edges = np.concatenate([np.zeros_like(came[:1]), came.cumsum(axis=0)])
        for begins, ends in pairwise(edges):
            parts = [slice(begin, end) for begin, end in zip(begins, ends, strict=True)]
            if (begins < ends).any():
                self._ready.append(_batch(replies, weights, parts))

    def _weights(self, draw: Draw, replies: list[SampleReply]) -> list[NDArray[np.float64]]:
        mass, size = sum(reply.mass for reply in replies), sum(reply.size for reply in replies)
        beta = self._config.beta_at(self._sampled)
        return [
            importance_weights(reply.probabilities, reply.mass, share, mass, size, beta)
            for reply, share in zip(replies, draw.shares.tolist(), strict=True)
        ]

    def _reason(self) -> str:
        inserted, config = sum(self._inserted), self._config
        late = [f"replay_server[{shard}]" for shard, asked in enumerate(self._asked) if any(asked)]
        if late:
            return f"learner waits for {', '.join(late)}"
        fresh = inserted - self._settled[0]
        if fresh < config.min_windows:
            return f"learner waits for windows: {fresh} of {config.min_windows} inserted"
        if not self._sizes.any():
            return f"learner waits for windows: none left of {inserted} inserted, replay.capacity is too small"
        return (
            f"learner waits for windows: {self._sampled} sampled, {inserted} inserted, "
            f"replay.samples_per_insert is {config.samples_per_insert}"
        )


def _behind_one_another(changed: list[Changed]) -> Changed:
    keys = np.concatenate([np.empty(0, np.int64), *(keys for keys, _ in changed)])
    return keys, np.concatenate([np.empty(0), *(priorities for _, priorities in changed)])


def nothing(batches: int) -> SampleReply:
    """Return what a shard that does not answer contributes to batches."""
    return SampleReply(
        counts=[0] * batches,
        windows={},
        keys=np.empty(0, np.int64),
        probabilities=np.empty(0),
        mass=0.0,
        size=0,
        inserted=0,
    )


def _batch(replies: list[SampleReply], weights: list[NDArray[np.float64]], parts: list[slice]) -> Sampled:
    """Put one batch together from its part of each reply, in the order of the shards."""
    pieces = [(reply, part) for reply, part in zip(replies, parts, strict=True) if part.start < part.stop]
    weight = np.concatenate([weight[part] for weight, part in zip(weights, parts, strict=True)])
    return Sampled(
        columns=spread(_joined([{name: c[:, part] for name, c in reply.windows.items()} for reply, part in pieces], 1)),
        weights=(weight / weight.max()).astype(np.float32),
        ticket=Ticket(
            shards=np.repeat(np.arange(len(parts)), [part.stop - part.start for part in parts]),
            keys=np.concatenate([reply.keys[part] for reply, part in pieces]),
        ),
        starts=_joined([{name: s[part] for name, s in reply.starts.items()} for reply, part in pieces], axis=0),
    )


def _joined(parts: list[Mapping[str, NDArray[Any]]], axis: int) -> dict[str, NDArray[Any]]:
    if len(parts) == 1:
        return dict(parts[0])
    return {name: _behind([part[name] for part in parts], axis) for name in parts[0]}


def _behind(arrays: list[NDArray[Any]], axis: int) -> NDArray[Any]:
    dtype = arrays[0].dtype
    if dtype.names is None:
        return np.concatenate(arrays, axis=axis)
    octets = f"V{dtype.itemsize}"  # what numpy copies several times faster than records
    return np.concatenate([array.view(octets) for array in arrays], axis=axis).view(dtype)
