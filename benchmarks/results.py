"""Where the benchmarks write their tables: a section each of a Markdown file."""

from __future__ import annotations

from pathlib import Path


def written(path: Path, name: str, text: str) -> None:
    """Puts `text` between the markers of `name`, which are added at the end where they are missing. All else stays."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if (start := old.find(begin)) >= 0 and (stop := old.find(end, start)) >= 0:
        new = old[:start] + section + old[stop + len(end) :]
    else:
        new = f"{old.rstrip()}\n\n{section}\n".lstrip()
    path.write_text(new, encoding="utf-8")
