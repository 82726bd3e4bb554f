import errno
import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from replay_server.segments import Position, Record, SegmentReader, SegmentWriter, read_records
from starling.errors import RunError
from starling.seal import sealed


def with_seal(octets: bytes) -> bytes:
    return sealed(np.frombuffer(octets, np.uint8)).tobytes()


UNROLLS = [with_seal(octets) for octets in (b"first", b"", b"x" * 40, b"the last one")]


def written(folder: Path, unrolls: list[bytes] = UNROLLS) -> Path:
    writer = SegmentWriter(folder, Position(7, 99))
    for n, unroll in enumerate(unrolls):
        writer.append(first_row=100 + 10 * n, rows=10, accounted=n != 1, unroll=unroll)
    writer.close()
    return folder / writer.segment.file


def plain(records: list[Record]) -> list[tuple[int, int, int, bool, bytes]]:
    return [(*record[:4], bytes(record.unroll)) for record in records]


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = written(tmp_path)

    records = plain(list(read_records(path)))

    assert path.name == "0000000000000007.seg"
    assert records == [(7 + n, 100 + 10 * n, 10, n != 1, unroll) for n, unroll in enumerate(UNROLLS)]


def test_what_a_file_holds_is_known_to_its_writer_and_its_reader_alike(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, Position(7, 99))
    writer.append(100, 10, True, with_seal(b"an unroll"))
    writer.append(110, 5, True, with_seal(b"another"))
    for headers_only in (False, True):
        reader = SegmentReader(tmp_path / writer.segment.file, headers_only=headers_only)
        assert len(list(reader)) == 2

        assert reader.segment == writer.segment
        assert reader.begin == Position(7, 99)
        assert (reader.segment.first_row, reader.segment.end_row) == (100, 115)
    writer.close()


def test_a_last_record_that_is_cut_at_any_byte_is_torn_and_those_before_it_are_whole(tmp_path: Path) -> None:
    whole = written(tmp_path)
    data, records = whole.read_bytes(), plain(list(read_records(whole)))
    start = len(written(tmp_path, UNROLLS[:-1]).read_bytes())
    cuts = range(start, len(data))

    for cut in cuts:
        whole.write_bytes(data[:cut])
        reader = SegmentReader(whole)

        assert plain(list(reader)) == records[:-1]
        assert reader.torn_bytes == cut - start
    print(f"{len(cuts)} cuts")


def test_a_file_that_is_cut_before_its_first_record_is_torn(tmp_path: Path) -> None:
    path = written(tmp_path)
    data = path.read_bytes()

    for cut in range(28):
        path.write_bytes(data[:cut])
        reader = SegmentReader(path)

        assert list(reader) == []
        assert reader.torn_bytes == cut


def test_zeros_where_nothing_was_written_yet_are_a_torn_end(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes() + bytes(5_000))
    reader = SegmentReader(path)

    assert len(list(reader)) == len(UNROLLS)
    assert reader.torn_bytes == 5_000


def test_a_flipped_bit_is_damage_wherever_it_is(tmp_path: Path) -> None:
    path = written(tmp_path)
    data = path.read_bytes()

    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(RunError, match=r"\.seg (is damaged at byte \d+: .+|has version .+)$"):
            list(read_records(path))


def test_a_file_of_another_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = written(tmp_path)
    data = bytearray(path.read_bytes())
    data[8:12] = (1).to_bytes(4, "little")
    data[24:28] = crc32(data[:24]).to_bytes(4, "little")
    path.write_bytes(data)

    with pytest.raises(RunError, match=r"has version 1, and this Starling reads \d: export its steps .+, or remove "):
        list(read_records(path))


def test_an_unroll_that_is_not_the_one_its_writer_sealed_is_damage(tmp_path: Path) -> None:
    path = written(tmp_path, [UNROLLS[0], b"no unroll", UNROLLS[2]])

    with pytest.raises(RunError, match="the unroll of record 8 is not the one that was written"):
        list(read_records(path))


def test_records_in_another_order_are_damage(tmp_path: Path) -> None:
    path = written(tmp_path, [with_seal(4 * letter) for letter in (b"a", b"b", b"c")])
    data = path.read_bytes()
    size = (len(data) - 28) // 3
    head, first, second, third = data[:28], data[28 : 28 + size], data[28 + size : -size], data[-size:]

    for mutant in (head + second + first + third, head + first + first + second, head + first + third):
        path.write_bytes(mutant)
        with pytest.raises(RunError, match=r"damaged at byte \d+: what is there does not follow record"):
            list(read_records(path))


def test_a_file_under_another_name_is_damage(tmp_path: Path) -> None:
    path = written(tmp_path)
    other = path.rename(path.with_name("0000000000000008.seg"))

    with pytest.raises(RunError, match="it begins with record 7, which is not what its name says"):
        list(read_records(other))


def test_a_file_can_be_read_up_to_a_record_and_no_other_byte(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "half").mkdir()
    size = written(tmp_path / "half", UNROLLS[:2]).stat().st_size

    assert len(list(read_records(path, size))) == 2
    for wrong in (size - 1, size + 1, size + 5_000):
        with pytest.raises(RunError, match="is damaged at byte"):
            list(read_records(path, wrong))


def test_a_failed_write_leaves_no_trace(tmp_path: Path) -> None:
    room = [10_000]

    def write(file: int, parts: Sequence[memoryview]) -> int:
        fits = b"".join(parts)[: room[0]]
        if not fits:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= len(fits)
        return os.write(file, fits)

    writer = SegmentWriter(tmp_path, Position(), write)
    writer.append(0, 1, True, with_seal(b"x" * 4_000))
    with pytest.raises(OSError, match="No space left"):
        writer.append(1, 1, True, with_seal(b"y" * 8_000))
    writer.close()

    reader = SegmentReader(tmp_path / writer.segment.file)
    assert writer.failed
    assert [bytes(record.unroll) for record in reader] == [with_seal(b"x" * 4_000)]
    assert reader.torn_bytes == 0


def test_reading_holds_one_record_at_a_time(tmp_path: Path) -> None:
    path = written(tmp_path, [with_seal(bytes(1 << 20))] * 16)

    tracemalloc.start()
    assert sum(len(record.unroll) for record in read_records(path)) == 16 * ((1 << 20) + 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 5 << 20
