"""A checksum at the end of a message that will be stored: its maker pays for it, and whoever reads it looks."""

import struct
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

SEAL = struct.Struct("<I")


def sealed(octets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the message with its checksum behind it."""
    return np.concatenate([octets, np.frombuffer(SEAL.pack(crc32(octets.data)), np.uint8)])


def seal_of(message: memoryview) -> int:
    """Return the checksum that a message ends with, right or wrong; 0 if it is too short for one."""
    checksum: int = SEAL.unpack_from(message, len(message) - SEAL.size)[0] if len(message) >= SEAL.size else 0
    return checksum


def is_whole(message: memoryview) -> bool:
    """Say whether a message is the one that its checksum was made of."""
    return len(message) >= SEAL.size and crc32(message[: -SEAL.size]) == seal_of(message)
