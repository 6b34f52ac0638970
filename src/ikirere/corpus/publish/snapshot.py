"""Snapshots: sets and mixtures as a folder in the hub's dataset layout, pushed, pulled and verified.

    README.md                              configurations, so that `load_dataset(folder, "code")` works
    manifests/<name>/<version>.json
    data/<name>/<version>/<split>.parquet

A version that is there never changes: pushing other content under its name is refused.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ikirere.common.files import atomic_folder, atomic_path, read_json, write_text
from ikirere.corpus.publish.manifest import (
    FOLDER,
    FileEntry,
    Manifest,
    MixtureManifest,
    SetManifest,
    file_entry,
    mixture_manifest,
    path_of,
    read_manifests,
    set_manifest,
    verify,
    write_manifest,
)
from ikirere.errors import UserError

HUB = "hf://"
Say = Callable[[str], None]


def push(data_folder: Path, target: str, say: Say = print) -> list[str]:
    """Put the sets and mixtures of a run's data folder into a snapshot: a local folder, or `hf://user/name`.

    Returns the names pushed. Raises UserError where a version is there with other content, and as the hub does.
    """
    with tempfile.TemporaryDirectory(prefix="snapshot-") as name:
        if target.startswith(HUB):
            staging = Path(name)
            _fetch_manifests(target, staging)
            pushed = _export(data_folder, staging, say)
            _upload(staging, target)
        else:
            pushed = _export(data_folder, Path(target), say)
    say(f"pushed {', '.join(pushed)} to {target}")
    return pushed


def pull(source: str, target: Path, say: Say = print) -> list[str]:
    """Copy a snapshot (a local folder or `hf://user/name`) to `target` and verify it; the names of what is there.

    Raises UserError naming the first file that differs from its manifest; then nothing is left at `target`.
    """
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target}: not empty; give a new folder")
    with atomic_folder(target) as part:
        if source.startswith(HUB):
            _download(source, part)
        else:
            read_manifests(Path(source))
            for name in (FOLDER, "data"):
                shutil.copytree(Path(source) / name, part / name)
            shutil.copy2(Path(source) / "README.md", part / "README.md")
        if wrong := verify(part):
            raise UserError(wrong[0].replace(str(part), source.rstrip("/")))
    names = sorted(read_manifests(target))
    say(f"pulled {', '.join(names)} to {target}; every file matches its manifest")
    return names


def _export(data_folder: Path, target: Path, say: Say) -> list[str]:
    if wrong := verify(data_folder):
        raise UserError(wrong[0])
    manifests = read_manifests(data_folder)
    target.mkdir(parents=True, exist_ok=True)
    sets: dict[str, SetManifest] = {}
    for name, manifest in manifests.items():
        if manifest["kind"] == "set":
            sets[manifest["name"]] = _export_set(data_folder, manifest, target)
            say(f"{name}: {sum(s['documents'] for s in manifest['splits'].values())} documents")
    for manifest in manifests.values():
        if manifest["kind"] == "mixture":
            weights = {p["set"].rpartition(":")[0]: p["weight"] for p in manifest["parents"]}
            mixed = mixture_manifest(manifest["name"], manifest["version"], weights, sets)
            _unchanged(target, mixed)
            write_manifest(target, mixed)
    write_text(target / "README.md", readme(read_manifests(target)))
    return sorted(manifests)


def _export_set(data_folder: Path, manifest: SetManifest, target: Path) -> SetManifest:
    folder = f"data/{manifest['name']}/{manifest['version']}"
    old = path_of(target, manifest["name"], manifest["version"])
    if old.is_file():
        known: SetManifest = read_json(old)
        if known["parents"] != [{"manifest": manifest["sha256"]}]:
            raise UserError(
                f"{old}: {manifest['name']}:{manifest['version']} is there with other content, and a version never "
                "changes; raise data.version"
            )
        return known
    (target / folder).mkdir(parents=True, exist_ok=True)
    files = []
    for entry in manifest["files"]:
        split = Path(entry["path"]).stem.rpartition("-")[2]
        if split in manifest["splits"] and manifest["splits"][split]["documents"]:
            files.append(
                _cut(data_folder / entry["path"], manifest["rows"], target, f"{folder}/{split}.parquet")
            )
    made = set_manifest(
        manifest["name"], manifest["version"], files, manifest["splits"], [{"manifest": manifest["sha256"]}]
    )
    write_manifest(target, made)
    return made


def _cut(source: Path, rows: Mapping[str, str], target: Path, name: str) -> FileEntry:
    """The rows of a set as a file of their own."""
    import pyarrow.compute as pc

    with (
        atomic_path(target / name) as part,
        pq.ParquetFile(source) as file,
        pq.ParquetWriter(part, file.schema_arrow, compression="zstd") as writer,
    ):
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            for column, value in rows.items():
                table = table.filter(pc.equal(table.column(column), value))
            if len(table):
                writer.write_table(table)
    return file_entry(target, name)


def _unchanged(target: Path, manifest: MixtureManifest) -> None:
    path = path_of(target, manifest["name"], manifest["version"])
    if path.is_file() and read_json(path)["sha256"] != manifest["sha256"]:
        raise UserError(
            f"{path}: {manifest['name']}:{manifest['version']} is there with other content, and a version never "
            "changes; raise data.version"
        )


def readme(manifests: Mapping[str, Manifest]) -> str:
    """The hub's dataset card: one configuration per set and version, and a table."""
    configs, table = [], []
    for manifest in manifests.values():
        if manifest["kind"] == "set":
            configs += [f"- config_name: {manifest['name']}-{manifest['version']}", "  data_files:"]
            for entry in manifest["files"]:
                configs += [f"  - split: {Path(entry['path']).stem}", f"    path: {entry['path']}"]
            for split, counts in manifest["splits"].items():
                table.append(
                    f"| {manifest['name']}:{manifest['version']} | {split} | {counts['documents']} | {counts['bytes']} |"
                )
    mixtures = [
        f"- `{name}`: " + ", ".join(f"{p['set']} {p['weight']:.3g}" for p in manifest["parents"])
        for name, manifest in manifests.items()
        if manifest["kind"] == "mixture"
    ]
    return "\n".join(
        [
            "---",
            "configs:",
            *configs,
            "---",
            "",
            "# Data sets",
            "",
            "| set | split | documents | bytes |",
            "|---|---|---|---|",
            *table,
            "",
            "Mixtures, as shares of tokens:",
            "",
            *mixtures,
            "",
            "`ikirere data snapshot verify FOLDER` checks every file.",
            "",
        ]
    )


# ------------------------------------------------------------ the hub


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            "snapshots on the hub need `huggingface-hub`; run `pip install ikirere[hub]`"
        ) from None
    return huggingface_hub


def _repo(target: str) -> str:
    return target.removeprefix(HUB).removeprefix("datasets/").strip("/")


def _guarded(action: Callable[[], Any], target: str) -> Any:
    try:
        return action()
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{target}: the hub cannot be reached or refuses ({reason}); log in with `hf auth login`"
        ) from None


def _fetch_manifests(target: str, staging: Path) -> None:
    """What is pushed there already, so that versions stay what they are."""
    hub = _hub()
    _guarded(
        lambda: hub.HfApi().create_repo(_repo(target), repo_type="dataset", exist_ok=True, private=True),
        target,
    )
    _guarded(
        lambda: hub.snapshot_download(
            _repo(target), repo_type="dataset", local_dir=staging, allow_patterns=[f"{FOLDER}/*"]
        ),
        target,
    )


def _upload(staging: Path, target: str) -> None:
    hub = _hub()
    _guarded(
        lambda: hub.HfApi().upload_folder(
            repo_id=_repo(target),
            repo_type="dataset",
            folder_path=str(staging),
            allow_patterns=[f"{FOLDER}/*", "data/*", "README.md"],
        ),
        target,
    )


def _download(source: str, folder: Path) -> None:
    hub = _hub()
    _guarded(lambda: hub.snapshot_download(_repo(source), repo_type="dataset", local_dir=folder), source)
