"""Folders that are hard to walk: links, depth, and what may not be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from badinput_helpers import config, read, with_a_good_file

from ikirere.corpus.readers import size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return with_a_good_file(tmp_path)


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    outside = tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (root / "sub" / "z.txt").write_text("in the tree")
    (outside / "o.txt").write_text("outside")
    (outside / "back").symlink_to(root)
    (tmp_path / "single.txt").write_text("single")
    for name, target in {
        "a_same.txt": root / "sub" / "z.txt",
        "b_loop": root,
        "c_up": tmp_path,
        "d_sub": root / "sub",
        "e_out": outside,
        "f_out_again": outside,
        "g_single.txt": tmp_path / "single.txt",
        "h_self": root / "h_self",
        "i_gone.txt": root / "nowhere",
        "sub/j_up": root / "sub",
    }.items():
        (root / name).symlink_to(target)
    documents, skipped = read(root)
    assert sorted((d.path, d.text) for d in documents) == [
        ("n/e_out/o.txt", "outside"),
        ("n/g_single.txt", "single"),
        ("n/sub/z.txt", "in the tree"),
    ]
    linked = ["a_same.txt", "b_loop", "c_up", "d_sub", "e_out/back", "f_out_again", "sub/j_up"]
    assert sorted(skipped) == sorted(
        [(f"n/{name}", "link") for name in linked]
        + [("n/h_self", "unreadable"), ("n/i_gone.txt", "unreadable")]
    )
    assert size(config(root), root) == sum(d.n_bytes for d in documents)


def test_a_deep_tree(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(300):
        deep /= "d"
        deep.mkdir()
    (deep / "a.txt").write_text("bottom")
    assert [d.text for d in read(tmp_path)[0]] == ["bottom"]


READ_AS_NOBODY = """
import os, sys
from pathlib import Path
from pydantic import TypeAdapter
from ikirere.corpus.readers import fingerprint, open_source
from ikirere.corpus.readers.formats import jsonl
from ikirere.corpus.readers.formats import parquet
from ikirere.recipe.data import Source
# What Python and Arrow load when they first need it is out of reach for the other user on some machines.
warm = {"kind": "local", "name": "w", "domain": "d", "path": sys.argv[2]}
list(open_source(TypeAdapter(Source).validate_python(warm), Path(), lambda *s: None))
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
source = TypeAdapter(Source).validate_python({"kind": "local", "name": "n", "domain": "d", "path": sys.argv[1]})
skipped = []
print([d.text for d in open_source(source, Path(), lambda *s: skipped.append(s))], sorted(skipped))
print(len(fingerprint(source, Path())))
"""


def test_what_may_not_be_read(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    warm = tmp_path_factory.mktemp("warm")
    (warm / "a.jsonl").write_text('{"text": "a"}')
    (warm / "a.txt").write_text("a")
    pq.write_table(pa.table({"text": ["a"]}), warm / "a.parquet")
    (folder / "closed").mkdir()
    (folder / "closed" / "a.txt").write_text("never seen")
    (folder / "secret.jsonl").write_text('{"text": "never seen"}\n')
    (folder / "secret.parquet").write_text("PAR1")
    (folder / "secret.txt").write_text("never seen")
    for path in (folder / "closed", *folder.glob("secret*")):
        path.chmod(0)
    above = [p for p in folder.parents if p.stat().st_mode & 0o001 == 0]
    try:
        for path in (folder, *above):
            path.chmod(path.stat().st_mode | 0o055)
        done = subprocess.run(
            [sys.executable, "-c", READ_AS_NOBODY, str(folder), str(warm)],
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        for path in above:
            path.chmod(path.stat().st_mode & ~0o055)
        (folder / "closed").chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "['good\\n'] [('n/closed/', 'unreadable'), ('n/secret.jsonl', 'unreadable'), "
        "('n/secret.parquet', 'unreadable'), ('n/secret.txt', 'unreadable')]",
        "64",
    ]
