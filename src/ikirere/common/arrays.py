"""Several arrays in one file, with equal bytes for equal arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ikirere.common.files import atomic


def save_arrays(path: Path, **arrays: npt.NDArray[np.generic]) -> None:
    """Writes an .npz file that `np.load` reads, whole or not at all. No time is stored, so equal arrays give equal bytes.

    Raises ValueError for arrays of objects (they would be pickled).
    """
    with atomic(path, "wb") as handle, zipfile.ZipFile(handle, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
