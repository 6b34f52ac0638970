"""Files whole or not at all, and equal bytes for equal arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from ikirere.common.arrays import save_arrays
from ikirere.common.files import atomic, atomic_folder, atomic_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic(path) as handle:
        handle.write("ä\n")
        assert not path.exists()
    assert path.read_bytes() == b"\xc3\xa4\n"
    with atomic_path(path) as part:
        part.write_text("second")
        assert path.read_bytes() == b"\xc3\xa4\n"
    assert path.read_text() == "second"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_after_an_error_the_old_file_stays_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    for name in ("one", "two"):
        with atomic_folder(folder) as part:
            (part / name).write_text(name)
    assert names(folder) == ["two"]
    with pytest.raises(ValueError), atomic_folder(folder) as part:
        (part / "three").write_text("half")
        raise ValueError
    assert names(folder) == ["two"] and names(tmp_path) == ["f"]


def test_equal_arrays_give_equal_bytes_whenever_they_are_written(tmp_path: Path) -> None:
    arrays = {"a": np.arange(5), "b": np.array(["x", "yz"], "S4"), "c": np.zeros((2, 3), np.float32)[:, ::2]}
    save_arrays(tmp_path / "one.npz", **arrays)
    save_arrays(tmp_path / "two.npz", **arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.npz") as archive:  # the bytes cannot depend on the clock
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with np.load(tmp_path / "one.npz", allow_pickle=False) as read:
        assert set(read) == set(arrays)
        for name, array in arrays.items():
            assert read[name].dtype == array.dtype and (read[name] == array).all()
    with pytest.raises(ValueError):
        save_arrays(tmp_path / "three.npz", a=np.array([object()]))
    assert not (tmp_path / "three.npz").exists()
