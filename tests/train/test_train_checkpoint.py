"""Checkpoints: whole or refused by name, newest that is whole is used, a full disk leaves nothing behind."""

from __future__ import annotations

import errno
import hashlib
import json
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.common.checkpoints import catalogue
from ikirere.errors import UserError
from ikirere.train import checkpoint, rng


def tensors(fill: float = 0.0) -> dict[str, torch.Tensor]:
    return {
        "a": torch.full((5, 3), fill),
        "b": torch.full((), fill),
        "c": torch.full((4,), fill, dtype=torch.bfloat16),
    }


def saved(folder: Path, *steps: int, keep: int = 9, config: str = "x") -> list[Path]:
    return [checkpoint.save(folder, s, tensors(s), {"step": s}, config, keep) for s in steps]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    values = {
        "a": torch.randn(7, 3, generator=generator),
        "b": torch.randn((), generator=generator),
        "t": torch.randn(4, 6, generator=generator).T,
    }
    state = {"step": 3, "big": 2**100, "x": 0.1}
    path = checkpoint.save(tmp_path, 3, values, state, "x", 2)
    assert path.name == "step-000003" and checkpoint.fault_of(path) == ""
    empty = {name: torch.zeros_like(value) for name, value in values.items()}
    assert checkpoint.load(path, empty) == state
    assert all(torch.equal(empty[name], values[name]) for name in values)
    assert not list(tmp_path.glob("*.part"))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000003", "step-000004"]
    found = checkpoint.latest_valid(tmp_path)
    assert found is not None and checkpoint.step_of(found) == 4


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_changed_byte_or_cut_is_found(data: st.DataObject) -> None:
    folder = Path(data_folder.name)
    path = folder / "step-000002"
    names = sorted(p.name for p in path.iterdir())
    name = data.draw(st.sampled_from(names))
    whole = (path / name).read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        broken = whole[:place]
    else:
        flip = data.draw(st.integers(1, 255))
        broken = whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
    lines: list[str] = []
    try:
        (path / name).write_bytes(broken)
        found = checkpoint.latest_valid(folder, lines.append)
    finally:
        if not path.exists():
            path.with_name(f"{path.name}.refused").rename(path)
        (path / name).write_bytes(whole)
    if not lines:  # only white space in files.json may change unseen, and then nothing is lost
        assert name == "files.json" and json.loads(broken) == json.loads(whole)
        return
    assert found is not None and found.name == "step-000001"
    assert len(lines) == 1 and "step-000002" in lines[0] and name in lines[0]


class _Folder:
    name = ""


data_folder = _Folder()


@pytest.fixture(autouse=True, scope="module")
def _two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    saved(folder, 1, 2)
    data_folder.name = str(folder)


def test_missing_and_extra_files_are_named(tmp_path: Path) -> None:
    one, two, three = saved(tmp_path, 1, 2, 3)
    (three / "state-0.json").unlink()
    (two / "stranger").touch()
    lines: list[str] = []
    assert checkpoint.latest_valid(tmp_path, lines.append) == one
    assert "step-000003" in lines[0] and "state-0.json" in lines[0]
    assert "step-000002" in lines[1] and "stranger" in lines[1]


def test_a_refused_one_does_not_count_among_those_kept(tmp_path: Path) -> None:
    *_, last = saved(tmp_path, 4, 8, 12, keep=2)
    (last / "state-0.json").write_text("{}")
    assert checkpoint.latest_valid(tmp_path) == tmp_path / "step-000008"
    saved(tmp_path, 9, 10, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000010", "step-000012.refused"]


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "step-000002.part").mkdir()
    (tmp_path / "step-000002.part" / "x").touch()
    checkpoint.latest_valid(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_a_kill_while_old_ones_are_removed_leaves_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1, 2, 3)

    def killed(path: Path) -> None:
        (path / "files.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.prune(tmp_path, 1)
    assert checkpoint.latest_valid(tmp_path) == tmp_path / "step-000003"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000003"]


def test_one_without_a_listing_is_not_kept_for_its_key(tmp_path: Path) -> None:
    first, *_ = saved(tmp_path, 1, 2, 3)
    (first / "files.json").unlink()
    checkpoint.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000003"]


def test_another_configuration_is_set_aside(tmp_path: Path) -> None:
    saved(tmp_path, 5, config="old")
    lines: list[str] = []
    assert checkpoint.latest_valid(tmp_path, lines.append, {"new"}) is None
    assert "step-000005.of-old" in lines[0]
    saved(tmp_path, 2, keep=1, config="new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000005.of-old"]


def test_setting_aside_deletes_nothing(tmp_path: Path) -> None:
    for fill in (1.0, 2.0, 3.0):
        checkpoint.save(tmp_path, 5, tensors(fill), {}, "old", 2)
        checkpoint.latest_valid(tmp_path, keys={"new"})
    names = ["step-000005.of-old", "step-000005.of-old-2", "step-000005.of-old-3"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    for name, fill in zip(names, (1.0, 2.0, 3.0)):
        held = tensors()
        checkpoint.load(tmp_path / name, held)
        assert float(held["a"][0, 0]) == fill


def test_the_listing_says_what_it_holds_and_one_without_that_still_loads(tmp_path: Path) -> None:
    path = checkpoint.save(
        tmp_path, 3, tensors(1), {"x": 1}, "k", 2, tokens=96, loss=2.5, purpose="milestone \u00e9"
    )
    info = catalogue(tmp_path)[0]
    assert (info.step, info.key, info.tokens, info.loss, info.purpose) == (
        3,
        "k",
        96,
        2.5,
        "milestone \u00e9",
    )
    listed = json.loads((path / "files.json").read_text())
    (path / "files.json").write_text(json.dumps({**listed, "tokens": 97}))
    assert checkpoint.fault_of(path) == "files.json is altered"
    old = {name: listed[name] for name in ("step", "config", "files")}
    digest = hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()
    (path / "files.json").write_text(json.dumps({**old, "sha256": digest}))
    assert checkpoint.latest_valid(tmp_path, keys={"k"}) == path
    assert checkpoint.load(path, tensors()) == {"x": 1}


def test_nothing_there(tmp_path: Path) -> None:
    assert checkpoint.latest_valid(tmp_path / "nowhere") is None


def test_random_states_come_back() -> None:
    import random

    import numpy as np

    rng.seed_all(5)
    random.gauss(0, 1)
    state = json.loads(json.dumps(rng.capture()))

    def draw() -> tuple[float, ...]:
        return (random.gauss(0, 1), random.random(), float(np.random.normal()), float(torch.rand(())))

    first = draw()
    with rng.untouched():
        draw()
    assert draw() != first
    rng.restore(state)
    assert draw() == first


# ---------------------------------------------------------------- full disk

BIG = {"a": torch.zeros(200_000)}


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    """A file system of 1 MB on `folder`; skips where this user may not mount."""
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def _small_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("told_before", [True, False])
def test_a_full_disk_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_before: bool
) -> None:
    folder = tmp_path / "disk"
    with _small_disk(folder):
        checkpoint.save(folder, 1, tensors(1), {}, "x", 2)
        (folder / "ballast").write_bytes(bytes(600_000))
        if not told_before:  # another writer takes the room while this one writes
            monkeypatch.setattr(checkpoint, "_check_free_space", lambda folder, tensors: None)
        with pytest.raises(UserError, match=str(folder)):
            checkpoint.save(folder, 2, BIG, {}, "x", 2)
        assert sorted(p.name for p in folder.iterdir()) == ["ballast", "step-000001"]
        found = checkpoint.latest_valid(folder)
        assert found is not None and found.name == "step-000001"


def test_a_file_size_limit_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with _small_files(), pytest.raises(UserError, match=str(tmp_path)):
        checkpoint.save(tmp_path, 2, BIG, {}, "x", 2)
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, checkpoint.full_disk_is_users(tmp_path):
        raise OSError(errno.EACCES, "no")
    assert caught.value.errno == errno.EACCES
