"""An actor's way to the shards, over lines that are no network: what is sent again, given up, and waited for."""

from collections import deque
from collections.abc import Callable
from typing import Any

from learner.config import QueueConfig
from learner.unroll_queue import MOST_S, UnrollQueue
from replay_server.shard import ReplayShard
from starling import wire
from starling.metrics import no_clock
from starling.types import InsertReply, Room
from tests.replay_worlds import bandit_unroll, make_shard
from tests.unrolls import unroll_of


def lost() -> Any:
    from cluster.handles import LOST  # Ray reads its environment when it is imported, which other tests must set

    return LOST


class Hands:
    """A clock that stands where it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeLine:
    """A line to a shard that takes up calls when it is told to, dies, and has successors."""

    def __init__(self, role: str, shard: ReplayShard, clock: Callable[[], float]) -> None:
        self.role = role
        self.shard = shard
        self.lacks = ""
        self._clock = clock
        self._flying: deque[tuple[str, Any]] = deque()
        self._come: list[Any] = []
        self._next: ReplayShard | None = None
        self._down_since: float | None = None

    @property
    def down_s(self) -> float | None:
        return None if self._down_since is None else self._clock() - self._down_since

    def send(self, method: str, *args: Any) -> None:
        if self._down_since is not None:
            self._come.append(lost())
        else:
            self._flying.append((method, args))

    def answers(self) -> list[Any]:
        self._reconnect()
        come, self._come = self._come, []
        return come

    def waits(self) -> str:
        self._reconnect()
        return "" if self._down_since is None else self.role

    def __len__(self) -> int:
        return len(self._flying)

    def work(self, calls: int = 100) -> None:
        for _ in range(min(calls, len(self._flying))):
            method, args = self._flying.popleft()
            self._come.append(self._answer(method, args))

    def store_without_an_answer(self) -> None:
        for method, args in self._flying:
            self._answer(method, args)

    def die(self) -> None:
        self._come += [lost()] * len(self._flying)
        self._flying.clear()
        self._down_since = self._clock()

    def come_back(self, shard: ReplayShard | None = None) -> None:
        self._next = shard or self.shard

    def _reconnect(self) -> None:
        if self._next is not None:
            self._come += [lost()] * len(self._flying)
            self._flying.clear()
            self.shard, self._next, self._down_since = self._next, None, None

    def _answer(self, method: str, args: Any) -> Any:
        if method == "credit":
            return Room(0 if self.lacks else self.shard.credit(), self.lacks)
        reply = self.shard.insert(wire.decode_unroll(args[0]))
        return InsertReply(credit=0, accepted=reply.accepted, waits=self.lacks) if self.lacks else reply


def sink_of(shards: int = 1, **config: Any) -> tuple[Any, list[FakeLine], Hands]:
    from cluster.handles import RemoteSink

    clock = Hands()
    lines = [FakeLine(f"replay_server[{n}]", make_shard(**config), clock) for n in range(shards)]
    some: Any = lines
    return RemoteSink(some, clock, in_flight=2, move_on_s=15.0), lines, clock


def send(sink: Any, sequence: int, windows: int = 1) -> None:
    sink.insert(bandit_unroll(None, count=windows, sequence=sequence))


def stored(line: FakeLine) -> int:
    return int(line.shard.stats()["counts"].get("windows_inserted", 0))


def test_no_more_is_in_flight_than_is_allowed() -> None:
    sink, (line,), _ = sink_of()

    waits = []
    for sequence in range(2):
        waits.append(sink.must_wait())
        send(sink, sequence)
    waits.append(sink.must_wait())
    line.work(calls=1)

    assert [*waits, sink.must_wait()] == ["", "", "replay_server[0] to acknowledge", ""]


def test_what_was_not_acknowledged_comes_to_the_successor_once_and_in_order() -> None:
    sink, (line,), _ = sink_of()
    for sequence in range(2):
        send(sink, sequence)
    line.store_without_an_answer()

    line.die()
    said = sink.must_wait()
    line.come_back()
    sink.must_wait()
    line.work()
    after = sink.must_wait()

    counts = line.shard.stats()["counts"]
    assert (said, after) == ("replay_server[0], down for 0 s", "")
    assert (counts["unrolls_inserted"], counts["unrolls_repeated"]) == (2, 2)
    assert sink.counts == {"unrolls_unanswered": 2, "unrolls_refused": 2, "unrolls_given_up": 0, "shards_changed": 0}


def test_nothing_new_overtakes_what_must_be_sent_again() -> None:
    sink, (line,), _ = sink_of()
    send(sink, 0)

    line.come_back()  # the successor is there before anything was known of the death
    send(sink, 1)
    line.work()
    sink.must_wait()
    line.work()
    sink.must_wait()

    counts = line.shard.stats()["counts"]
    assert counts["unrolls_inserted"] == 2
    assert counts.get("streams_cut", 0) == 0


def test_a_writer_goes_on_to_the_next_shard_and_home_again() -> None:
    sink, lines, clock = sink_of(shards=3)
    send(sink, 0)
    lines[0].work()
    send(sink, 1)
    sink.must_wait()

    lines[0].die()
    clock.now = 15.0
    early = sink.must_wait()
    lines[1].die()
    clock.now = 15.1
    late = sink.must_wait()
    send(sink, 2)
    lines[2].work()
    away = sink.must_wait()
    send(sink, 3)
    lines[0].come_back()
    first_the_rest = sink.must_wait()
    lines[2].work()
    home = sink.must_wait()
    send(sink, 4)
    lines[0].work()

    assert (early, late, away, home) == ("replay_server[0], down for 15 s", "", "", "")
    assert first_the_rest == "replay_server[2] to acknowledge"
    assert [stored(line) for line in lines] == [2, 0, 2]
    assert sink.counts == {"unrolls_unanswered": 1, "unrolls_refused": 0, "unrolls_given_up": 1, "shards_changed": 2}
    assert lines[0].shard.stats()["counts"]["streams_cut"] == 1


def test_a_writer_waits_where_it_is_while_no_other_shard_is_up() -> None:
    sink, lines, clock = sink_of(shards=2)
    send(sink, 0)
    for line in lines:
        line.die()

    clock.now = 60.0
    said = sink.must_wait()
    lines[0].come_back()
    sink.must_wait()
    lines[0].work()

    assert said == "replay_server[0], down for 60 s"
    assert (sink.must_wait(), stored(lines[0])) == ("", 1)
    assert sink.counts["unrolls_given_up"] == 0


def test_when_the_next_shard_dies_too_the_writer_goes_home_at_once() -> None:
    sink, lines, clock = sink_of(shards=2)
    lines[0].die()
    clock.now = 16.0
    sink.must_wait()
    send(sink, 0)
    lines[1].die()
    lines[0].come_back()

    assert sink.must_wait() == ""
    assert sink.counts["unrolls_given_up"] == 1


def test_a_writer_without_credit_says_what_its_shard_waits_for() -> None:
    sink, (line,), clock = sink_of(min_windows=1)
    send(sink, 0)
    line.work()
    for_credit = sink.must_wait()
    line.lacks = "its disk"
    send(sink, 1)
    line.work()

    for_its_disk = [sink.must_wait()]
    clock.now = 1.0
    for_its_disk.append(sink.must_wait())
    line.lacks = ""
    line.work()

    assert for_credit == "insert credit from replay_server[0]"
    assert for_its_disk == ["replay_server[0] (its disk)"] * 2
    assert sink.must_wait() == "insert credit from replay_server[0]"


class FakeLearner:
    """A line to a learner whose queue answers at once, and before that to a process in which it is not yet there."""

    def __init__(self, queue: UnrollQueue | None) -> None:
        self.role, self.down_s = "learner[0]", None
        self.queue = queue
        self.refused = self.asked = 0
        self._come: list[Any] = []

    def send(self, method: str, *args: Any) -> None:
        self.asked += method == "credit"
        starting = 0, "it is starting"
        if method == "credit":
            self._come.append(Room(*starting) if self.queue is None else self.queue.credit(*args))
        elif self.queue is None:
            self._come.append(InsertReply(credit=0, accepted=False, waits=starting[1]))
        else:
            reply = self.queue.insert(wire.decode_whole(args[0]))
            self.refused += not reply.accepted
            self._come.append(reply)

    def answers(self) -> list[Any]:
        come, self._come = self._come, []
        return come

    def waits(self) -> str:
        return ""

    def __len__(self) -> int:
        return len(self._come)


def sink_to(queue: UnrollQueue | None) -> tuple[Any, FakeLearner, Hands]:
    from cluster.handles import RemoteSink

    clock, line = Hands(), FakeLearner(queue)
    some: Any = line
    return RemoteSink([some], clock, at_first=1, pack=wire.encode_whole), line, clock


def test_a_writer_never_sends_more_than_a_learners_queue_has_places_for() -> None:
    queue = UnrollQueue(QueueConfig(capacity=3), unrolls=1, actors=1, clock=no_clock)
    sink, line, clock = sink_to(queue)
    sequence = 0

    for turn in range(30):
        clock.now += 0.02
        while not (said := sink.must_wait()):
            sink.insert(unroll_of(sequence=sequence))
            sequence += 1
        if turn % 3 == 0:
            queue.take(version=1)

    assert said in ("learner[0] (its queue is full)", "learner[0] to acknowledge")
    assert line.refused == 0
    assert 10 <= sequence <= 3 + 10


def test_a_full_queue_is_asked_only_when_it_said_that_there_may_be_room() -> None:
    gaps = iter(float(second) for second in range(100))
    queue = UnrollQueue(QueueConfig(capacity=1), unrolls=1, actors=1, clock=lambda: next(gaps))
    for sequence in range(20):
        queue.insert(unroll_of(actor=0, sequence=sequence))
        queue.take(version=1)
    sink, line, clock = sink_to(queue)
    sink.insert(unroll_of(sequence=20))

    for millisecond in range(200):
        clock.now = millisecond / 1000
        sink.must_wait()

    assert 2 <= line.asked <= 4  # every 50 ms, however slow the learner is
    assert queue.credit(0).ask_after_s == MOST_S


def test_what_is_sent_to_a_learner_that_is_not_there_yet_is_lost_and_its_writer_waits_for_it() -> None:
    sink, line, clock = sink_to(None)
    sink.insert(unroll_of(sequence=0))

    said = [sink.must_wait(), sink.must_wait()]
    line.queue = UnrollQueue(QueueConfig(), unrolls=1, actors=1, clock=no_clock)
    clock.now = 1.0
    said += [sink.must_wait(), sink.must_wait(), sink.must_wait()]
    sink.insert(unroll_of(sequence=1))

    assert said[:2] == ["learner[0] (it is starting)"] * 2
    assert said[-1] == ""
    assert sink.counts["unrolls_refused"] == 1
    assert line.queue.stats()["gauges"]["queued"] == 1.0
