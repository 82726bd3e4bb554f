"""Arrays as one file of numpy's, whole or not at all."""

from pathlib import Path

import numpy as np

from starling.errors import DataError
from starling.types import Columns


def write_npz(path: Path, arrays: Columns) -> None:
    """Write arrays, compressed, and rename the file into its place."""
    unfinished = path.with_name(f".{path.name}")
    try:
        with unfinished.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type] # an array may be named as its own flag
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None
