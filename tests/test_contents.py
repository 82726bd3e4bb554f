"""What shards begin with: what they held before, exactly or with all since, also when there are others now."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.contents import Contents, Replay, replay_folder, shard_folder
from cluster.snapshots import disk_bytes, has_snapshots, prune_unnamed, require_snapshots, snapshot_name
from replay_server.config import ReplayConfig
from replay_server.durable import DurableShard
from replay_server.shard import ReplayShard
from replay_server.snapshots import SNAPSHOTS
from starling.errors import RunError
from starling.metrics import no_clock
from starling.state import State
from starling.types import SampleReply, SampleRequest
from starling.windows import Window
from tests.replay_worlds import EXTRA, SPEC, bandit_unroll

ACTORS = 6
UNROLLS = 4
PER_UNROLL = 3  # windows


class Service:
    """All shards of a run, as they begin with `replay`; actors write to the shard that is theirs."""

    def __init__(self, replay: Replay, shards: int, generation: int = 0, **config: Any) -> None:
        self.config = ReplayConfig(shards=shards, **{"capacity": 6_000, "min_windows": 1, **config})
        self.replay = replay
        self.restored: list[Any] = []
        replay.prepare(self.config)
        self.shards = [self.shard(index, generation) for index in range(shards)]

    def shard(self, index: int, generation: int = 0) -> DurableShard:
        origin = self.replay.origin(index, generation)
        rng = np.random.default_rng(index)
        bare = ReplayShard(self.config, SPEC, Window(), EXTRA, rng, no_clock, origin)
        made, restored = self.replay.durable(bare, index, generation, self.config, no_clock, background=False)
        self.restored.append(restored)
        return made

    def write(self, actor: int, sequences: Sequence[int], generation: int = 0) -> None:
        for sequence in sequences:
            priorities = [float(1 + actor + sequence)] * PER_UNROLL
            self.shards[actor % len(self.shards)].insert(
                bandit_unroll(priorities, sequence=sequence, actor=actor, generation=generation)
            )

    def taken(self, name: str) -> dict[str, State]:
        for shard in self.shards:
            shard.snapshot(name)
        states = {f"replay_server[{index}]": shard.taken(name) for index, shard in enumerate(self.shards)}
        return {role: state for role, state in states.items() if state is not None}

    def close(self) -> None:
        for shard in self.shards:
            shard.close()


def asked(shard: DurableShard, windows: int) -> SampleReply:
    nothing = np.empty(0, np.int64)
    return shard.sample(SampleRequest(counts=[windows], keys=nothing, priorities=np.empty(0), insert_limit=10**9))


def drawn(shard: DurableShard) -> set[tuple[int, int]]:
    """Return of every window its actor and its key."""
    reply = asked(shard, 4_000)
    return set(zip(reply.columns["obs"][0, :, 0].astype(int).tolist(), reply.keys.tolist(), strict=True))


def windows(service: Service) -> dict[int, int]:
    """Return how many windows there are of each actor, all of them where that actor writes to."""
    found = [(index, actor) for index, shard in enumerate(service.shards) for actor, _ in drawn(shard)]
    assert all(actor % len(service.shards) == index for index, actor in found)
    return dict(Counter(actor for _, actor in found))


def begun(folder: Path, shards: int = 2, **config: Any) -> tuple[Service, dict[str, State]]:
    """Return shards to which every actor has written, half of it after the snapshot that their states name."""
    service = Service(Replay(folder=str(folder)), shards, **config)
    for actor in range(ACTORS):
        service.write(actor, range(UNROLLS // 2))
    states = service.taken(snapshot_name(1))
    for actor in range(ACTORS):
        service.write(actor, range(UNROLLS // 2, UNROLLS))
    return service, states


def going_on(folder: Path, contents: Contents, states: dict[str, State]) -> Replay:
    return Replay(folder=str(folder), contents=contents, states=states)


@pytest.mark.parametrize(("contents", "unrolls"), [("exact", 2), ("newest", 4), ("new", 0)])
def test_a_resumed_shard_holds_what_was_asked_for(contents: Contents, unrolls: int, tmp_path: Path) -> None:
    service, states = begun(tmp_path)
    service.close()

    again = Service(going_on(tmp_path, contents, states), 2)

    assert windows(again) == ({actor: unrolls * PER_UNROLL for actor in range(ACTORS)} if unrolls else {})


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(("contents", "unrolls"), [("moved_exact", 2), ("moved_newest", 4)])
def test_other_shards_share_what_there_was_by_actor(
    shards: int, contents: Contents, unrolls: int, tmp_path: Path
) -> None:
    service, states = begun(tmp_path)
    total = sum(asked(shard, 0).mass for shard in service.shards)
    service.close()

    again = Service(going_on(tmp_path, contents, states), shards)

    assert [shard.credit() for shard in again.shards] == [0] * shards  # until the learner says how much may come
    assert windows(again) == {actor: unrolls * PER_UNROLL for actor in range(ACTORS)}
    if contents == "moved_newest":
        assert sum(asked(shard, 0).mass for shard in again.shards) == pytest.approx(total)


def test_from_two_shards_to_one_and_on_to_three_nothing_is_lost(tmp_path: Path) -> None:
    service, states = begun(tmp_path)
    service.close()

    one = Service(going_on(tmp_path, "moved_newest", states), 1)
    states = one.taken(snapshot_name(2))
    prune_unnamed(tmp_path, {str(state.meta["snapshot"]) for state in states.values()})
    one.close()
    three = Service(going_on(tmp_path, "moved_newest", states), 3)

    assert windows(three) == {actor: UNROLLS * PER_UNROLL for actor in range(ACTORS)}
    assert not list(tmp_path.glob("shard-1/snapshots/*"))


def test_a_smaller_capacity_keeps_the_newest(tmp_path: Path) -> None:
    service, states = begun(tmp_path)
    service.close()

    again = Service(going_on(tmp_path, "moved_newest", states), 2, capacity=60)

    held = windows(again)
    assert 0 < sum(held.values()) <= 60
    assert again.shards[0].rows[1] - again.shards[0].rows[0] <= 30


def test_a_move_that_was_interrupted_loses_nothing_that_came_since(tmp_path: Path) -> None:
    service, states = begun(tmp_path)
    service.close()
    moving = going_on(tmp_path, "moved_newest", states)
    first = Service(moving, 3)
    first.write(0, [0, 1], generation=9)
    first.close()  # no checkpoint names what these shards hold

    again = Service(moving, 3)

    assert windows(again)[0] == (UNROLLS + 2) * PER_UNROLL


def test_a_shard_that_dies_after_a_move_comes_back_with_its_part(tmp_path: Path) -> None:
    service, states = begun(tmp_path)
    service.close()
    moved = Service(going_on(tmp_path, "moved_newest", states), 3)
    moved.write(1, [0], generation=9)
    moved.shards[1].close()

    successor = moved.shard(1, generation=1)

    assert len(drawn(successor)) == 2 * UNROLLS * PER_UNROLL + PER_UNROLL
    assert moved.restored[-1].records == 2 * UNROLLS + 1


def test_a_successor_holds_what_was_acknowledged_and_knows_its_writers(tmp_path: Path) -> None:
    service, _ = begun(tmp_path)
    service.shards[0].close()

    successor = service.shards[0] = service.shard(0, generation=1)
    before = drawn(successor)
    reply = successor.insert(bandit_unroll(None, count=3, sequence=UNROLLS - 1, actor=0))

    assert len(before) == 3 * UNROLLS * PER_UNROLL
    assert not reply.accepted  # it came before
    assert drawn(successor) == before
    assert {key >> 40 for _, key in before} == {1}


@pytest.mark.parametrize("aside", [".live", ".gone-live"])
@pytest.mark.parametrize("generation", [0, 1])
def test_a_log_that_is_on_its_way_when_the_process_dies_is_restored(
    aside: str, generation: int, tmp_path: Path
) -> None:
    service, _ = begun(tmp_path)
    service.close()
    own = shard_folder(tmp_path, 0)
    own.joinpath("live").rename(own / aside)  # between two renames there is no live log
    if aside == ".live":
        own.joinpath(".gone-live").mkdir()

    again = Service(going_on(tmp_path, "newest", {}), 2, generation)

    assert len(drawn(again.shards[0])) == 3 * UNROLLS * PER_UNROLL


def test_without_durability_nothing_outlives_a_shard(tmp_path: Path) -> None:
    service, states = begun(tmp_path, durability="none")

    successor = service.shard(0, generation=1)

    assert [state.meta for state in states.values()] == [{"origin": 0}, {"origin": 0}]
    assert drawn(successor) == set()
    assert not tmp_path.joinpath("shard-0").exists()


def test_keys_of_a_shard_whose_contents_are_lost_are_new(tmp_path: Path) -> None:
    lost = Replay(states={"replay_server[0]": State(meta={"origin": 3})}, heard=7)

    assert [lost.origin(0, generation) for generation in range(3)] == [8, 9, 10]


def test_a_checkpoint_whose_snapshot_is_not_whole_is_refused(tmp_path: Path) -> None:
    service, states = begun(tmp_path)
    service.close()
    require_snapshots(tmp_path, states)
    segment = next(shard_folder(tmp_path, 1).glob("snapshots/*/*.seg"))

    segment.unlink()

    with pytest.raises(RunError, match=r"\.seg is damaged: it must have \d+ bytes, got 0"):
        require_snapshots(tmp_path, states)


def test_a_snapshot_that_is_newer_than_every_checkpoint_is_not_pruned(tmp_path: Path) -> None:
    service, states = begun(tmp_path)
    newer = service.taken("000002-ffffffff")

    prune_unnamed(tmp_path, {str(state.meta["snapshot"]) for state in states.values()})

    require_snapshots(tmp_path, states)
    require_snapshots(tmp_path, newer)


def test_a_new_snapshot_of_a_shard_that_is_in_no_checkpoint_is_not_pruned(tmp_path: Path) -> None:
    service, states = begun(tmp_path)
    first = str(states["replay_server[1]"].meta["snapshot"])
    shutil.rmtree(shard_folder(tmp_path, 1) / SNAPSHOTS / first)  # as if it had failed
    newer = service.taken("000002-ffffffff")

    prune_unnamed(tmp_path, {first})
    prune_unnamed(tmp_path, set())

    assert has_snapshots(tmp_path)
    require_snapshots(tmp_path, newer)


def test_the_folder_is_the_runs_or_below_the_one_that_is_set(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"

    assert replay_folder(ReplayConfig(), run) == run / "replay"
    assert replay_folder(ReplayConfig(folder=str(tmp_path / "fast")), run) == tmp_path / "fast" / "a"


def test_a_move_that_was_made_before_is_made_anew_when_a_checkpoint_came_between(tmp_path: Path) -> None:
    service, states = begun(tmp_path)
    service.close()
    moving = going_on(tmp_path, "moved_exact", states)
    first = Service(moving, 3)
    later = first.taken(snapshot_name(2))
    both = [*states.values(), *later.values()]
    prune_unnamed(tmp_path, {str(state.meta["snapshot"]) for state in both})
    first.write(0, [0, 1], generation=9)
    first.close()

    again = Service(moving, 3)

    assert windows(again) == {actor: UNROLLS // 2 * PER_UNROLL for actor in range(ACTORS)}


def test_a_shard_that_keeps_nothing_takes_its_part_of_a_move_once(tmp_path: Path) -> None:
    service, states = begun(tmp_path)
    service.close()
    moved = Service(going_on(tmp_path, "moved_newest", states), 1, durability="none")

    successor = moved.shard(0, generation=1)

    assert sum(windows(moved).values()) == ACTORS * UNROLLS * PER_UNROLL
    assert drawn(successor) == set()


@pytest.mark.parametrize(("contents", "shards"), [("newest", 2), ("moved_newest", 3)])
def test_writers_of_a_run_that_goes_on_are_new_also_under_their_old_numbers(
    contents: Contents, shards: int, tmp_path: Path
) -> None:
    service, states = begun(tmp_path)
    service.close()
    known: dict[str, State] = states if contents.startswith("moved") else {}  # before the first checkpoint

    for _ in range(2):  # the second time it goes on with what it has moved
        again = Service(going_on(tmp_path, contents, known), shards)
        replies = [again.shards[0].insert(bandit_unroll(None, count=3, sequence=n, actor=0)) for n in range(2)]
        again.close()

        assert [reply.accepted for reply in replies] == [True, True]


def test_what_was_overwritten_takes_nobodys_room_in_a_move(tmp_path: Path) -> None:
    service = Service(Replay(folder=str(tmp_path)), 2, capacity=120)
    for actor, unrolls in ((0, 100), (1, 10)):  # both shards are full, and the first one's log is ten times longer
        service.write(actor, range(unrolls))
    states = service.taken(snapshot_name(1))
    before = windows(service)
    service.close()

    again = Service(going_on(tmp_path, "moved_newest", states), 1, capacity=120)

    assert windows(again) == before


def test_files_that_go_while_they_are_counted_are_no_trouble(tmp_path: Path) -> None:
    begun(tmp_path)[0].close()
    before = disk_bytes(tmp_path)
    (tmp_path / "shard-0" / "live" / "gone.seg").symlink_to(tmp_path / "nowhere")  # named, and not there

    assert disk_bytes(tmp_path) == before > 0
