"""The files of a shard's log: unrolls as they came, in records that tell of any change to them.

    file      magic 8 | version u32 | chain u32 | first serial u64 | CRC u32
    record    length u64 | serial u64 | first row u64 | rows u32 | flags u32 | CRC u32 | chain u32 | unroll

Little-endian. An unroll ends with a checksum that its writer made (`starling.seal`); a record's CRC is that very one.
Its chain is the checksum of its header up to there, begun with the chain of the record before it, and a file begins
with the chain of the file before it. So what was changed, moved, repeated, left out or taken from another log does not
pass for a record. A *torn* end is what a death in the middle of a write leaves: too few bytes, or zeros where nothing
was written yet. Everything else is *damage*.
"""

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import BufferedReader, FileIO
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np

from starling.codec import Octets
from starling.errors import RunError
from starling.failpoints import armed, reach
from starling.seal import is_whole, seal_of

MAGIC = b"STARLSEG"
VERSION = 2
SUFFIX = ".seg"

Write = Callable[[int, Sequence[memoryview]], int]
Sync = Callable[[int], None]

_FILE = struct.Struct("<8sIIQ")
_RECORD = struct.Struct("<QQQIII")
_CRC = struct.Struct("<I")
_FILE_BYTES = _FILE.size + _CRC.size
_RECORD_BYTES = _RECORD.size + _CRC.size
_ACCOUNTED = 1
_PIECE = 1 << 20


class Record(NamedTuple):
    """One unroll as it was stored."""

    serial: int
    first_row: int
    rows: int
    accounted: bool  # False: data that came from elsewhere, of which the samples-per-insert account knows nothing
    unroll: memoryview  # `wire.encode_unroll`; empty where only headers are read


class Position(NamedTuple):
    """Between two records: the serial of the next one, and the chain up to there."""

    serial: int = 0
    chain: int = 0


class Segment(NamedTuple):
    """What a file holds up to some record."""

    file: str
    bytes: int
    records: int
    first_serial: int
    chain: int
    first_row: int
    end_row: int

    @property
    def end(self) -> Position:
        """Where the next record goes, in this file or another one."""
        return Position(self.first_serial + self.records, self.chain)


def segment_name(first_serial: int) -> str:
    """Return the name of the file that begins with this record; names sort as records do."""
    return f"{first_serial:016d}{SUFFIX}"


def damaged(path: Path, offset: int, reason: str) -> RunError:
    """Return the one sentence about a file that cannot be trusted."""
    return RunError(f"{path} is damaged at byte {offset}: {reason}")


class SegmentWriter:
    """Appends records to one new file. Bytes of a write that failed are cut off, or left as a torn end."""

    def __init__(self, folder: Path, begin: Position, write: Write = os.writev, sync: Sync = os.fsync) -> None:
        self.segment = Segment(segment_name(begin.serial), 0, 0, *begin, first_row=0, end_row=0)
        self.failed = False  # nothing more may be written
        self._write, self._sync = write, sync
        self._synced = 0
        self._path = folder / self.segment.file
        self._path.unlink(missing_ok=True)  # one without records, else its name would be another
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def append(self, first_row: int, rows: int, accounted: bool, unroll: Octets) -> None:
        """Write a record; afterwards it outlives this process, and after `sync` the machine's power."""
        octets = np.frombuffer(unroll, np.uint8).data
        serial, chain = self.segment.end
        head = b""
        if not self.segment.bytes:
            head = _FILE.pack(MAGIC, VERSION, chain, serial)
            head += _CRC.pack(crc32(head))
        fields = _RECORD.pack(len(octets), serial, first_row, rows, _ACCOUNTED * accounted, seal_of(octets))
        chain = crc32(fields, chain)
        head += fields + _CRC.pack(chain)
        reach("replay.before_record")
        try:
            if armed("replay.mid_record"):  # else in one go: each call to the system costs 4 us
                self._write_all([memoryview(head)])
                reach("replay.mid_record")
                self._write_all([octets])
            else:
                self._write_all([memoryview(head), octets])
        except OSError:
            self.failed = True
            with suppress(OSError):  # what cannot be cut off is a torn end
                os.ftruncate(self._file, self.segment.bytes)
            raise
        reach("replay.after_record")
        file, size, records, first_serial, _, begin_row, _ = self.segment
        size += len(head) + len(octets)
        begin_row = begin_row if records else first_row
        self.segment = Segment(  # at once: another thread may look
            file, size, records + 1, first_serial, chain, begin_row, first_row + rows
        )

    def sync(self) -> None:
        """Force to the disk what was written before; may be called from another thread."""
        written = self.segment.bytes
        if self._synced == written:
            return
        try:
            if not self._synced:
                sync_folder(self._path.parent, self._sync)
            self._sync(self._file)
        except OSError:
            self.failed = True
            raise
        self._synced = written

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _write_all(self, parts: list[memoryview]) -> None:
        written = self._write(self._file, parts)
        if written < sum(map(len, parts)):
            left = memoryview(b"".join(parts))[written:]
            while left:
                left = left[self._write(self._file, [left]) :]


class SegmentReader:
    """Yields the records of a file, each once it is proven whole; `segment` is the part that was read so far.

    Holds one record at a time. With `limit` the file must hold records up to that very byte, and what is behind them
    is not looked at. With `headers_only` the unrolls are passed over, and nothing is known of them.
    """

    def __init__(self, path: Path, limit: int | None = None, headers_only: bool = False) -> None:
        self.begin: Position | None = None  # None: the file is too short to say
        self.torn_bytes = 0
        self.segment = Segment(path.name, 0, 0, 0, 0, 0, 0)
        self.path = path
        self._limit = limit
        self._headers_only = headers_only

    def __iter__(self) -> Iterator[Record]:
        try:
            file = BufferedReader(FileIO(self.path), _PIECE)
        except OSError as error:
            raise RunError(f"{self.path} cannot be read: {error.strerror}") from None
        with file:
            size = self._size(file)
            if not self._read_head(file, size):
                return
            while record := self._read_record(file, size):
                yield record

    def _size(self, file: "BufferedReader[FileIO]") -> int:
        size = os.fstat(file.fileno()).st_size
        if self._limit is None:
            return size
        if size < self._limit:
            raise damaged(self.path, size, f"it ends there, and must have {self._limit} bytes")
        return self._limit

    def _read_head(self, file: "BufferedReader[FileIO]", size: int) -> bool:
        head = file.read(min(_FILE_BYTES, size))
        if self._is_torn(file, head, _FILE_BYTES, size):
            return False
        (crc,) = _CRC.unpack(head[_FILE.size :])
        magic, version, chain, serial = _FILE.unpack(head[: _FILE.size])
        if crc != crc32(head[: _FILE.size]) or magic != MAGIC:
            raise damaged(self.path, 0, "it does not begin as a segment of a replay log")
        if version != VERSION:
            raise RunError(
                f"{self.path} has version {version}, and this Starling reads {VERSION}: export its steps with the "
                "Starling that wrote it, or remove the folder of the run's replay to go on with an empty one"
            )
        in_a_log = self.path.stem.isdigit()  # what was taken out of one may have any name
        if in_a_log and self.path.name != segment_name(serial):
            raise damaged(self.path, 0, f"it begins with record {serial}, which is not what its name says")
        self.begin = Position(serial, chain)
        self.segment = self.segment._replace(bytes=_FILE_BYTES, first_serial=serial, chain=chain)
        return True

    def _read_record(self, file: "BufferedReader[FileIO]", size: int) -> Record | None:
        at = self.segment.bytes
        head = file.read(min(_RECORD_BYTES, size - at))
        if not head or self._is_torn(file, head, _RECORD_BYTES, size):
            return None
        (chain,) = _CRC.unpack(head[_RECORD.size :])
        length, serial, first_row, rows, flags, crc = _RECORD.unpack(head[: _RECORD.size])
        if chain != crc32(head[: _RECORD.size], self.segment.chain):
            raise damaged(self.path, at, f"what is there does not follow record {self.segment.end.serial - 1}")
        end = at + _RECORD_BYTES + length
        if end > size:
            self._tear(at, size)
            return None
        unroll = self._read_unroll(file, length)
        if not self._headers_only and not (is_whole(memoryview(unroll)) and seal_of(memoryview(unroll)) == crc):
            raise damaged(self.path, at, f"the unroll of record {serial} is not the one that was written")
        seen = self.segment
        begin_row = seen.first_row if seen.records else first_row
        self.segment = Segment(seen.file, end, seen.records + 1, seen.first_serial, chain, begin_row, first_row + rows)
        return Record(serial, first_row, rows, bool(flags & _ACCOUNTED), memoryview(unroll))

    def _read_unroll(self, file: "BufferedReader[FileIO]", length: int) -> bytearray:
        if self._headers_only:
            file.seek(length, os.SEEK_CUR)
            return bytearray()
        unroll = bytearray(length)
        file.readinto(unroll)
        return unroll

    def _is_torn(self, file: "BufferedReader[FileIO]", head: bytes, needed: int, size: int) -> bool:
        """Say whether a header is too short, or nothing but zeros are left: a file may grow before it is written."""
        torn = len(head) < needed or (not any(head) and _only_zeros(file))
        if torn:
            self._tear(self.segment.bytes, size)
        return torn

    def _tear(self, at: int, size: int) -> None:
        if self._limit is not None:
            raise damaged(self.path, at, f"its last record ends behind byte {size}, where the file must end")
        self.torn_bytes = size - at


def read_records(path: Path, bytes: int | None = None) -> Iterator[Record]:
    """Yield the whole records of a file, or those of exactly its first `bytes`; RunError for anything damaged."""
    return iter(SegmentReader(path, bytes))


def _only_zeros(file: "BufferedReader[FileIO]") -> bool:
    while piece := file.read(_PIECE):
        if any(piece):
            return False
    return True


def sync_folder(path: Path, sync: Sync = os.fsync) -> None:
    """Force a folder's names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
