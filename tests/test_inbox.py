import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.inbox import MAX_UNROLLS, Inbox, deliver, write_segment
from replay_server.durable import DurableShard
from replay_server.storage import columns_of
from starling import wire
from starling.errors import DataError
from starling.metrics import no_clock
from starling.spec import ArraySpec
from starling.types import Array, Unroll
from starling.windows import Window
from tests.replay_worlds import EXTRA, SPEC, CountingWorld, make_shard

COLUMNS = columns_of(SPEC, EXTRA)


def sent(count: int, actor: int = 1_000_000) -> list[Unroll]:
    world = CountingWorld(np.random.default_rng(count), actor=actor)
    return [world.unroll(4) for _ in range(count)]


class Shards:
    """Remembers what it was given, unless it is down."""

    def __init__(self) -> None:
        self.got: list[tuple[int, Unroll]] = []
        self.down: set[int] = set()

    def __call__(self, shard: int, packed: Array, number: int) -> bool:
        if shard in self.down:
            return False
        self.got.append((shard, wire.decode_unroll(packed)))
        return True

    @property
    def names(self) -> list[tuple[int, int]]:
        return [(unroll.actor, unroll.sequence) for _, unroll in self.got]


class World:
    """A run's inbox, its shards, and what is noted."""

    def __init__(
        self, folder: Path, shards: int = 2, columns: Any = COLUMNS, clock: Any = no_clock, rows: int = 100
    ) -> None:
        self.folder = folder
        self.shards = Shards()
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.inbox = Inbox(folder, columns, shards, rows, lambda what, **facts: self.notes.append((what, facts)), clock)

    def feed(self) -> int:
        return self.inbox.feed(self.shards)

    @property
    def files(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.folder)) if self.folder.exists() else []


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    return World(tmp_path / "inbox")


def test_nothing_delivered_is_nothing_to_do(world: World) -> None:
    assert world.feed() == 0
    assert world.files == []


def test_what_is_delivered_reaches_the_shard_of_its_stream_and_goes(world: World) -> None:
    unrolls = [*sent(3), *sent(2, actor=1_000_001)]
    written = deliver(world.folder, "data", unrolls)

    fed = world.feed()

    assert fed == 5
    assert written.steps == sum(unroll.num_steps for unroll in unrolls)
    assert world.shards.names == [(unroll.actor, unroll.sequence) for unroll in unrolls]
    assert [shard for shard, _ in world.shards.got] == [0, 0, 0, 1, 1]
    assert world.notes == [("filled", {"file": "data-0001.seg", "unrolls": 5, "env_steps": written.steps})]
    assert world.files == []


def test_a_call_does_only_so_much(world: World) -> None:
    deliver(world.folder, "data", sent(MAX_UNROLLS + 3))

    assert [world.feed() for _ in range(3)] == [MAX_UNROLLS, 3, 0]
    assert len(set(world.shards.names)) == MAX_UNROLLS + 3


def test_a_call_takes_only_so_long(tmp_path: Path) -> None:
    seconds = iter(range(1000))
    world = World(tmp_path, clock=lambda: next(seconds))
    deliver(world.folder, "data", sent(3))

    assert [world.feed() for _ in range(4)] == [1, 1, 1, 0]


def test_a_shard_that_is_down_gets_its_part_when_it_is_back(world: World) -> None:
    unrolls = [*sent(2), *sent(2, actor=1_000_001), *sent(1, actor=1_000_002)]
    deliver(world.folder, "data", unrolls)
    world.shards.down = {1}

    before = world.feed(), world.feed()
    world.shards.down = set()
    after = world.feed(), world.feed()

    assert before == (2, 0)
    assert after == (3, 0)
    assert world.shards.names == [(unroll.actor, unroll.sequence) for unroll in unrolls]


def test_what_a_shard_took_without_answering_in_time_is_stored_once(world: World) -> None:
    from cluster.processes import ShardProcess  # Ray reads its environment when it is imported: not before `own_ray`

    shard = DurableShard(make_shard(Window(length=2), capacity=200), None, no_clock)
    process, calls = ShardProcess(lambda tell: shard), count()
    unrolls = sent(4)
    for part in (unrolls[:2], unrolls[:2], unrolls[2:]):  # the same data twice is no repetition
        deliver(world.folder, "data", part)

    def late(_: int, packed: Array, number: int) -> bool:
        return process.fill(packed, number) and next(calls) % 2 == 1  # the first answer to each is lost

    for _ in range(12):
        world.inbox.feed(late)

    assert shard.stats()["counts"]["unrolls_filled"] == 6
    assert [facts["unrolls"] for _, facts in world.notes] == [2, 2, 2]


def test_a_run_that_ends_goes_on_with_the_rest(world: World) -> None:
    unrolls = [*sent(2), *sent(2, actor=1_000_001)]
    deliver(world.folder, "data", unrolls)
    world.shards.down = {1}
    world.feed()

    again = World(world.folder)
    again.feed()

    assert again.shards.names == [(unroll.actor, unroll.sequence) for unroll in unrolls[2:]]
    assert again.files == []


def test_a_file_begins_at_its_own_beginning_when_one_of_its_name_left_a_count(world: World) -> None:
    path = deliver(world.folder, "data", [*sent(2), *sent(1, actor=1_000_001)]).path
    world.shards.down = {1}
    world.feed()
    path.unlink()  # a run that died here had not come to remove the count
    unrolls = [*sent(3, actor=1_000_002), *sent(1, actor=1_000_004)]
    assert deliver(world.folder, "data", unrolls).path == path

    again = World(world.folder)
    again.feed()

    assert again.shards.names == [(unroll.actor, unroll.sequence) for unroll in unrolls]
    assert again.files == []


def test_deliveries_of_one_name_are_taken_in_turn(world: World) -> None:
    paths = [deliver(world.folder, "data", sent(count)).path.name for count in (1, 2)]

    world.feed()

    assert paths == ["data-0001.seg", "data-0002.seg"]
    assert [facts["unrolls"] for _, facts in world.notes] == [1, 2]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def cut(path: Path, at: int) -> None:
    path.write_bytes(path.read_bytes()[:at])


@pytest.mark.parametrize(("damage", "at"), [(flip, 3), (flip, -9), (cut, -9), (cut, 50)])
def test_a_damaged_file_is_put_aside_and_noted(world: World, damage: Any, at: int) -> None:
    path = deliver(world.folder, "data", sent(3)).path
    damage(path, at)
    deliver(world.folder, "later", sent(1))

    for _ in range(3):
        world.feed()

    assert [what for what, _ in world.notes] == ["filling_failed", "filled"]
    assert "is damaged" in world.notes[0][1]["error"]
    assert (world.folder / "refused" / "data-0001.seg").exists()
    assert world.files == ["refused"]


def test_data_of_other_columns_is_put_aside(tmp_path: Path) -> None:
    world = World(tmp_path, columns=COLUMNS | {"obs": ArraySpec((3,), "float32")})
    deliver(world.folder, "data", sent(1))

    world.feed()

    assert world.shards.got == []
    assert world.notes[0][1]["error"].endswith("obs must be float32 of [steps, copies, *(3,)], got float32 (4, 2, 2)")


def test_steps_that_no_shard_has_room_for_are_put_aside(tmp_path: Path) -> None:
    world = World(tmp_path, rows=3)
    deliver(world.folder, "data", sent(1))

    world.feed()

    assert world.shards.got == []
    assert [what for what, _ in world.notes] == ["filling_failed"]
    assert "must fit in a shard, which keeps 3 steps (replay.capacity), got" in world.notes[0][1]["error"]


def test_a_disk_that_does_not_say_how_far_it_got_ends_nothing(world: World) -> None:
    path = deliver(world.folder, "data", [*sent(1), *sent(1, actor=1_000_001)]).path
    path.with_name(f".{path.name}.taken").mkdir()  # it cannot be written
    world.shards.down = {1}

    assert world.feed() == 1


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def failing() -> Iterator[Unroll]:
        yield from sent(2)
        raise DataError("the rest is bad")

    with pytest.raises(DataError, match="the rest is bad"):
        write_segment(tmp_path / "data.seg", failing())

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unrolls", [[], [replace(sent(1)[0], columns={"acted": np.zeros((0, 1), bool)})][:0]])
def test_nothing_is_no_data(tmp_path: Path, unrolls: Sequence[Unroll]) -> None:
    with pytest.raises(DataError, match="recorded data must hold at least one step, got none"):
        write_segment(tmp_path / "data.seg", unrolls)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written: No such file or directory"):
        write_segment(tmp_path / "nowhere" / "data.seg", sent(1))
