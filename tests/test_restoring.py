import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from replay_server.log import LIVE, segment_paths
from replay_server.restoring import Restored, rehash, restore_exactly, restore_live, restore_newest
from replay_server.shard import ReplayShard
from replay_server.snapshots import INDEX, SNAPSHOTS, link_or_copy, read_snapshot
from starling.errors import RunError
from starling.types import Unroll
from tests.replay_logs import WINDOW, assert_same_windows, durable, logged, names, senders, taken, unrolls_of
from tests.replay_worlds import draw, make_shard

MUTATIONS = int(os.environ.get("STARLING_MUTATIONS", "60"))


def empty(**config: Any) -> ReplayShard:
    return make_shard(WINDOW, **{"capacity": 200, **config})


def shard_with(unrolls: list[Unroll], **config: Any) -> ReplayShard:
    shard = empty(**config)
    for unroll in unrolls:
        shard.insert(unroll)
    return shard


def lived(folder: Path, unrolls: list[Unroll], snapshot_at: int) -> tuple[ReplayShard, dict[str, Any]]:
    """Insert unrolls, change some priorities, and take a snapshot on the way; returns the shard that did so."""
    shard = empty()
    log = durable(folder, shard)
    for n, unroll in enumerate(unrolls):
        if n == snapshot_at:
            keys = draw(shard, 50).keys
            draw(shard, 0, keys=keys.tolist(), priorities=np.linspace(1.0, 9.0, 50).tolist())
            meta = dict(taken(log, "a").meta)
        log.insert(unroll)
    if snapshot_at == len(unrolls):
        meta = dict(taken(log, "a").meta)
    log.close()
    return shard, meta


def test_a_shard_is_restored_exactly_as_it_was_at_the_snapshot(tmp_path: Path) -> None:
    unrolls = unrolls_of(60)
    at_snapshot, _ = lived(tmp_path / "same", unrolls[:40], 40)
    keys = draw(at_snapshot, 50).keys
    draw(at_snapshot, 0, keys=keys.tolist(), priorities=np.linspace(1.0, 9.0, 50).tolist())
    _, meta = lived(tmp_path / "a", unrolls, 40)

    again = empty(seed=99)
    restored = restore_exactly(again, tmp_path / "a", meta)

    assert restored.records == meta["records"]
    assert (restored.torn_bytes, restored.notes) == (0, [])
    assert again.index().meta == {**at_snapshot.index().meta, "writers": []}
    first, second = draw(again, 64), draw(at_snapshot, 64)
    for name, column in first.columns.items():
        np.testing.assert_array_equal(column, second.columns[name])
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    assert senders(logged(tmp_path / "a"))[-1] == names(unrolls)[39]


def test_the_log_goes_on_after_an_exact_restore(tmp_path: Path) -> None:
    unrolls = unrolls_of(60)
    _, meta = lived(tmp_path, unrolls[:40], 30)
    shard = empty()
    restore_exactly(shard, tmp_path, meta)
    log = durable(tmp_path, shard)
    for unroll in unrolls[40:]:
        log.insert(unroll)
    second = dict(taken(log, "b").meta)
    log.close()

    again = empty()
    restore_exactly(again, tmp_path, second)

    assert_same_windows(again, shard)
    kept = names(unrolls[:30] + unrolls[40:])
    stored = senders(logged(tmp_path))
    assert stored == kept[len(kept) - len(stored) :]


def test_the_newest_contents_are_the_snapshot_and_what_the_log_took_since(tmp_path: Path) -> None:
    whole, meta = lived(tmp_path, unrolls_of(60), 40)

    again = empty()
    restored = restore_newest(again, tmp_path, meta)

    assert (restored.torn_bytes, restored.notes) == (0, [])
    assert_same_windows(again, whole)
    assert again.index().meta["inserted"] == meta["inserted"]
    assert again.index().meta["writers"] == []


def test_the_newest_contents_are_found_also_when_nothing_of_the_snapshot_is_alive(tmp_path: Path) -> None:
    whole, meta = lived(tmp_path, unrolls_of(100), 20)
    assert whole.rows[0] > meta["end"]

    again = empty()
    restore_newest(again, tmp_path, meta)

    assert_same_windows(again, whole)


def test_a_log_without_the_segments_that_the_snapshot_knows_is_refused(tmp_path: Path) -> None:
    _, meta = lived(tmp_path, unrolls_of(12), 1)
    segment_paths(tmp_path / LIVE)[0].unlink()

    with pytest.raises(RunError, match=r"live is damaged: rows 0 to \d+ are missing$"):
        restore_newest(empty(), tmp_path, meta)


def test_without_a_snapshot_the_log_alone_is_the_newest(tmp_path: Path) -> None:
    unrolls = unrolls_of(10)
    log = durable(tmp_path)
    for unroll in unrolls:
        log.insert(unroll)

    for meta in (None, {"origin": 0}):
        again = empty()
        assert restore_newest(again, tmp_path, meta).records == 10
        assert_same_windows(again, shard_with(unrolls))


def test_a_torn_end_is_cut_off_and_reported(tmp_path: Path) -> None:
    unrolls = unrolls_of(25)
    for restore in (lambda shard, meta: restore_newest(shard, tmp_path, meta), lambda s, _: restore_live(s, tmp_path)):
        shutil.rmtree(tmp_path)
        _, meta = lived(tmp_path, unrolls, 20)
        (*_, last) = segment_paths(tmp_path / LIVE)
        last.write_bytes(last.read_bytes()[:-7])

        again = empty()
        restored: Restored = restore(again, meta)

        assert restored.torn_bytes > 0
        assert restored.notes == []
        assert again.rows[1] == shard_with(unrolls[:24]).rows[1]
        assert senders(logged(tmp_path))[-1] == names(unrolls)[23]
        assert restore(empty(), meta).torn_bytes == 0


def test_in_a_run_a_shard_remembers_its_writers_and_its_priorities(tmp_path: Path) -> None:
    unrolls = unrolls_of(41)
    whole, _ = lived(tmp_path, unrolls[:40], 40)

    again = empty()
    restored = restore_live(again, tmp_path)
    inserted = again.index().meta["inserted"]

    assert_same_windows(again, whole)
    assert restored.notes == []
    assert inserted == 0
    assert not again.insert(unrolls[39]).accepted
    assert again.insert(unrolls[40]).accepted
    assert "streams_cut" not in again.stats()["counts"]


def test_in_a_run_what_is_behind_damage_is_lost_and_said_to_be(tmp_path: Path) -> None:
    unrolls = unrolls_of(20)
    lived(tmp_path, unrolls, 20)
    first, second, *_ = segment_paths(tmp_path / LIVE)
    before = int(second.stem)  # the first record of a segment is its name
    flip(second, 500)

    again = empty()
    restored = restore_live(again, tmp_path)

    (note,) = restored.notes
    assert note.startswith(f"{second} is damaged at byte ")
    assert note.endswith("; what was inserted after it is lost")
    assert before <= restored.records < 20
    assert senders(logged(tmp_path)) == names(unrolls[: restored.records])
    assert first.exists()
    assert restore_live(empty(), tmp_path).notes == []
    assert drawn_obs(again) <= drawn_obs(shard_with(unrolls))


def test_a_log_that_does_not_go_on_from_the_snapshot_is_left_out_and_said_to_be(tmp_path: Path) -> None:
    whole, meta = lived(tmp_path, unrolls_of(30), 30)
    shutil.rmtree(tmp_path / LIVE)

    again = empty()
    restored = restore_newest(again, tmp_path, meta)

    assert restored.notes == [
        f"{tmp_path / LIVE} does not go on from snapshot a: what was inserted after the snapshot is lost"
    ]
    assert_same_windows(again, whole)


def test_an_older_future_of_the_log_does_not_harm_a_newer_snapshot(tmp_path: Path) -> None:
    unrolls = unrolls_of(30)
    shard = empty()
    log = durable(tmp_path, shard)
    metas = []
    for n, unroll in enumerate(unrolls):
        log.insert(unroll)
        if n in (9, 19):
            metas.append(taken(log, f"at-{n}").meta)
    log.close()
    restore_exactly(empty(), tmp_path, metas[0])

    again = empty()
    restored = restore_newest(again, tmp_path, metas[1])

    assert len(restored.notes) == 1
    assert again.rows[1] == shard_with(unrolls[:20]).rows[1]


def test_priorities_of_a_future_that_was_given_up_are_not_used(tmp_path: Path) -> None:
    unrolls = unrolls_of(30)
    shard = empty()
    log = durable(tmp_path, shard)
    metas = []
    for n, unroll in enumerate(unrolls):
        log.insert(unroll)
        if n in (9, 19):
            metas.append(taken(log, f"at-{n}").meta)
            keys = np.unique(draw(shard, 50).keys)
            draw(shard, 0, keys=keys.tolist(), priorities=[7.0] * len(keys))
    log.close()
    again = empty()
    restore_exactly(again, tmp_path, metas[0])
    second = durable(tmp_path, again)
    for unroll in unrolls[20:]:
        second.insert(unroll)

    last = empty()
    restore_live(last, tmp_path)

    assert_same_windows(last, again)


def test_rows_that_were_not_kept_leave_a_gap_that_nobody_samples(tmp_path: Path) -> None:
    unrolls = unrolls_of(12, actors=1)
    shard = empty()
    log = durable(tmp_path, shard)
    for n, unroll in enumerate(unrolls):
        if n == 5:
            shard.insert(unroll)  # as on a full disk: the log does not have it
        else:
            log.insert(unroll)
    meta = taken(log, "a").meta

    again = empty()
    restore_exactly(again, tmp_path, meta)

    assert again.rows == shard.rows
    assert drawn_obs(again) < drawn_obs(shard)
    lost = {tuple(obs) for obs in unrolls[5].columns["obs"].reshape(-1, 2).tolist()}
    assert not drawn_obs(again) & lost


def test_contents_are_shared_out_anew_among_other_shards(tmp_path: Path) -> None:
    old, metas = [tmp_path / "old-0", tmp_path / "old-1"], []
    unrolls = [unrolls_of(24, actors=4)[n] for n in range(24)]
    for n, folder in enumerate(old):
        own = [unroll for unroll in unrolls if unroll.actor % 2 == n]
        metas.append(lived(folder, own, 8)[1])
    shards, seen = [], set()

    for index in range(3):
        shard = durable(tmp_path / f"shard-{index}")
        restored = rehash(shard, old, metas, lambda actor, index=index: actor % 3 == index)
        shards.append(shard)
        mine = [unroll for unroll in unrolls if unroll.actor % 3 == index]
        assert restored.records == len(mine)
        assert sorted(senders(logged(tmp_path / f"shard-{index}"))) == sorted(names(mine))
        assert {record.accounted for record in logged(tmp_path / f"shard-{index}")} == {False}
        seen |= set(drawn_masses(shard.index()))

    assert len(seen) > 3  # priorities came along
    assert sum(draw(shard, 1).size for shard in shards) == draw(shard_with(unrolls, capacity=1_000), 1).size
    again = empty()
    restore_live(again, tmp_path / "shard-1")
    assert drawn_obs(again) == drawn_obs(shards[1])


def test_of_a_smaller_shard_the_newest_of_every_old_one_remain(tmp_path: Path) -> None:
    old = [tmp_path / "old-0", tmp_path / "old-1"]
    metas = [lived(folder, unrolls_of(30, actors=1, seed=n), 30)[1] for n, folder in enumerate(old)]

    shard = durable(tmp_path / "new", capacity=80)
    rehash(shard, old, metas, lambda _: True)

    stored = logged(tmp_path / "new")
    assert shard.rows[1] - shard.rows[0] == 80
    assert Counter(senders(stored[-4:])) == {(0, 0, 28): 2, (0, 0, 29): 2}


def drawn_obs(shard: Any) -> set[tuple[float, float]]:
    """Return the first observation of every window that can be drawn."""
    return {tuple(obs) for obs in draw(shard, 2_000).columns["obs"][0].tolist()}


def drawn_masses(index: Any) -> list[float]:
    masses: list[float] = index.arrays["masses"].tolist()
    return masses


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    rewrite(path, bytes(data))


def rewrite(path: Path, data: bytes) -> None:
    """Replace a file, and leave alone those that it was linked with."""
    path.unlink()
    path.write_bytes(data)


def mutate(files: list[Path], rng: random.Random) -> str:
    """Do to one or two files what disks and people do to files; returns what."""
    path = rng.choice(files)
    data = path.read_bytes()
    at, size = rng.randrange(len(data)), rng.randrange(1, 200)
    kind = rng.choice(["flip", "truncate", "delete", "swap", "duplicate", "extend", "overwrite", "remove bytes"])
    match kind:
        case "flip":
            flip(path, at, rng.randrange(8))
        case "truncate":
            rewrite(path, data[:at])
        case "delete":
            path.unlink()
        case "swap":
            other = rng.choice(files)
            theirs = other.read_bytes()
            rewrite(other, data)
            rewrite(path, theirs)
        case "duplicate":
            rewrite(path, data[:at] + data[max(0, at - size) : at] + data[at:])
        case "extend":
            rewrite(path, data + rng.choice([bytes(size), rng.randbytes(size), data[-size:]]))
        case "overwrite":
            rewrite(path, data[:at] + rng.randbytes(size) + data[at + size :])
        case "remove bytes":
            rewrite(path, data[:at] + data[at + size :])
    return kind


Restore = Callable[[ReplayShard, Path, dict[str, Any]], Restored]


@pytest.mark.parametrize("restore", [restore_exactly, restore_newest])
def test_no_mutation_of_segments_or_index_loads_silently(restore: Restore, tmp_path: Path) -> None:
    rng, outcomes = random.Random(6), Counter[str]()
    whole, meta = lived(tmp_path / "whole", unrolls_of(60), 60)
    snapshot = tmp_path / "whole" / SNAPSHOTS / "a"
    for _ in range(MUTATIONS):
        folder = tmp_path / "mutant"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder, copy_function=link_files)
        places = [folder / SNAPSHOTS / "a"] if restore is restore_exactly else [folder / SNAPSHOTS / "a", folder / LIVE]
        files = sorted(path for place in places for path in place.iterdir() if path.name != "index.sha256")
        kind = mutate(files, rng)

        again = empty()
        restored = attempt(restore, again, folder, meta)
        if isinstance(restored, str):
            assert str(folder) in restored
            assert "\n" not in restored
            outcomes["refused"] += 1
            continue
        assert_same_windows(again, whole)
        reported = restored.torn_bytes or restored.notes
        outcomes[f"{'reported' if reported else 'harmless'}: {kind}"] += 1
    assert read_snapshot(snapshot)[0].meta["end"] == whole.rows[1]  # the original took no harm
    assert outcomes["refused"] > 0.3 * MUTATIONS
    print(f"{restore.__name__}: {MUTATIONS} mutations, silently loaded 0, {dict(outcomes)}")


def attempt(restore: Restore, shard: ReplayShard, folder: Path, meta: dict[str, Any]) -> Restored | str:
    """Return what came back, or why nothing did."""
    try:
        return restore(shard, folder, meta)
    except RunError as error:
        return str(error)


def link_files(source: str, target: str) -> None:
    link_or_copy(Path(source), Path(target), os.path.getsize(source))


def test_an_index_that_is_not_the_checkpoints_is_refused(tmp_path: Path) -> None:
    _, meta = lived(tmp_path, unrolls_of(5), 5)
    index = tmp_path / SNAPSHOTS / "a" / INDEX

    with pytest.raises(RunError, match=f"^{index} is damaged: its sha256 is not the one that was kept of it$"):
        restore_exactly(empty(), tmp_path, {**meta, "sha256": "0" * 64})
