"""Pictures without a library: bytes as a PNG file."""

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR = 0, 2
GAP, GROUND = 2, 128  # pixels between pictures, and their shade

Pixels = NDArray[np.uint8]


def png(pixels: Pixels) -> bytes:
    """Return a picture, `[H, W]` in grey or `[H, W, 3]` in red, green and blue, as a file."""
    height, width = pixels.shape[:2]
    kind = GREY if pixels.ndim == 2 else COLOUR
    lines = np.ascontiguousarray(pixels).reshape(height, -1)
    filtered = np.pad(lines, ((0, 0), (1, 0)))  # each line begins with its filter: none
    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b"")
    return SIGNATURE + b"".join(_chunk(name, data) for name, data in parts)


def picture(obs: NDArray[Any]) -> Pixels | None:
    """Return an observation as a picture, of stacked frames the newest; None if it is none."""
    if obs.dtype != np.uint8 or obs.ndim not in (2, 3) or min(obs.shape[-2:]) < 1:
        return None
    if obs.ndim == 2 or obs.shape[-1] == 3:
        return obs
    if obs.shape[-1] <= 4:  # height, width, frames
        return obs[..., -1]
    return obs[-1] if obs.shape[0] <= 16 else None  # frames, height, width


def sheet(rows: Sequence[Sequence[Pixels]]) -> Pixels:
    """Lay pictures of one size out in rows."""
    height, width, *colours = rows[0][0].shape
    columns = max(map(len, rows))
    size = len(rows) * (height + GAP) + GAP, columns * (width + GAP) + GAP
    whole = np.full((*size, *colours), GROUND, np.uint8)
    for row, pictures in enumerate(rows):
        for column, pixels in enumerate(pictures):
            top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
            whole[top : top + height, left : left + width] = pixels
    return whole


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
