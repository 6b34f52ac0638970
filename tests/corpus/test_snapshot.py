"""Manifests and snapshots: immutable versions, found out when a byte changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ikirere.corpus.build.pipeline import build
from ikirere.corpus.publish import snapshot
from ikirere.corpus.publish.manifest import mixture_manifest, read_manifests, verify
from ikirere.errors import UserError
from ikirere.recipe.data import Data


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("snapshot"), "v0.1")


def make(root: Path, version: str, extra: str = "") -> Path:
    for domain in ("code", "docs"):
        rows = [{"text": f"{domain} number {i} " * (i + 3) + extra, "spdx": "MIT"} for i in range(12)]
        (root / f"{domain}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = [{"kind": "jsonl", "name": d, "path": f"{d}.jsonl", "domain": d} for d in ("code", "docs")]
    keys: dict[str, Any] = {"sources": sources, "near_duplicates": None, "heldout": 0.2, "version": version}
    out = root / "data"
    out.mkdir(exist_ok=True)
    build(Data.model_validate(keys), root, out, 0, {"stage1": {"code": 2, "docs": 1}, "stage2": {"docs": 1}})
    return out


def test_push_pull_verify(data_folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    names = ["code:v0.1", "docs:v0.1", "stage1:v0.1", "stage2:v0.1"]
    assert snapshot.push(data_folder, str(tmp_path / "hub"), said.append) == names
    assert snapshot.pull(str(tmp_path / "hub"), tmp_path / "copy", said.append) == names
    assert verify(tmp_path / "copy") == []
    manifests = read_manifests(tmp_path / "copy")
    built = read_manifests(data_folder)
    for name in ("code:v0.1", "docs:v0.1"):
        assert manifests[name]["splits"] == built[name]["splits"]
        assert manifests[name]["parents"] == [{"manifest": built[name]["sha256"]}]
        rows = [
            r
            for e in manifests[name]["files"]
            for r in pq.read_table(tmp_path / "copy" / e["path"]).to_pylist()
        ]
        assert len(rows) == 12 and {r["domain"] for r in rows} == {name.split(":")[0]}
    assert [p["weight"] for p in manifests["stage1:v0.1"]["parents"]] == pytest.approx([2 / 3, 1 / 3])


def test_the_hub_library_reads_a_snapshot(data_folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    snapshot.push(data_folder, str(tmp_path / "hub"), lambda line: None)
    loaded = datasets.load_dataset(
        str(tmp_path / "hub"), "code-v0.1", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert set(loaded["domain"]) == {"code"} and len(loaded) > 5


def test_one_changed_byte_is_named(data_folder: Path, tmp_path: Path) -> None:
    snapshot.push(data_folder, str(tmp_path / "hub"), lambda line: None)
    file = next((tmp_path / "hub" / "data" / "code").rglob("train.parquet"))
    raw = bytearray(file.read_bytes())
    raw[100] ^= 1
    file.write_bytes(raw)
    [line] = verify(tmp_path / "hub")
    assert line.startswith("code:v0.1: ") and line.endswith(f"{file} was altered (sha256 differs)")
    with pytest.raises(UserError, match=r"code:v0.1: .*train\.parquet was altered"):
        snapshot.pull(str(tmp_path / "hub"), tmp_path / "copy")
    assert not (tmp_path / "copy").exists() and not (tmp_path / "copy.part").exists()


def test_an_altered_manifest_is_named(data_folder: Path, tmp_path: Path) -> None:
    snapshot.push(data_folder, str(tmp_path / "hub"), lambda line: None)
    path = tmp_path / "hub" / "manifests" / "stage1" / "v0.1.json"
    path.write_text(path.read_text().replace('"weight": 0.6', '"weight": 0.7'))
    assert verify(tmp_path / "hub") == [
        f"{path}: altered or damaged (its own hash does not fit); pull or build it again"
    ]


def test_a_version_never_changes(data_folder: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "hub")
    snapshot.push(data_folder, target, lambda line: None)
    before = {p: p.read_bytes() for p in (tmp_path / "hub").rglob("*") if p.is_file()}
    snapshot.push(data_folder, target, lambda line: None)
    (tmp_path / "b").mkdir()
    other = make(tmp_path / "b", "v0.1", "changed")
    with pytest.raises(
        UserError,
        match=r"code:v0\.1 is there with other content, and a version never changes; raise data\.version",
    ):
        snapshot.push(other, target, lambda line: None)
    assert before == {p: p.read_bytes() for p in (tmp_path / "hub").rglob("*") if p.is_file()}
    (tmp_path / "c").mkdir()
    snapshot.push(make(tmp_path / "c", "v0.2", "changed"), target, lambda line: None)
    assert {"code:v0.1", "code:v0.2"} <= set(read_manifests(tmp_path / "hub"))
    assert verify(tmp_path / "hub") == []


def test_a_hub_that_cannot_be_reached_is_one_line(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def refuse(*args: object, **more: object) -> None:
        raise OSError("no route to host\nand much more")

    monkeypatch.setattr(hub.HfApi, "create_repo", refuse)
    with pytest.raises(
        UserError, match=r"^hf://me/data: the hub cannot be reached or refuses \(no route to host\)"
    ):
        snapshot.push(data_folder, "hf://me/data")


def test_what_goes_to_the_hub(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    sent: dict[str, Any] = {}

    def upload(self: object, **more: Any) -> None:
        sent["repo"] = more["repo_id"], more["repo_type"]
        sent["files"] = sorted(
            p.relative_to(more["folder_path"]).as_posix() for p in Path(more["folder_path"]).rglob("*.*")
        )

    monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, *a, **k: None)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(hub, "snapshot_download", lambda *a, **k: None)
    snapshot.push(data_folder, "hf://datasets/me/data", lambda line: None)
    assert sent["repo"] == ("me/data", "dataset")
    assert "README.md" in sent["files"] and "manifests/code/v0.1.json" in sent["files"]


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no set has a weight above 0"):
        mixture_manifest("m", "v1", {"code": 0.0}, {})
