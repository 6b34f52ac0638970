"""Time and peak memory of a finished run, stage by stage, as a table.

Example:
    ikirere run recipes/demo.yaml && python benchmarks/demo_stages.py runs/demo --write benchmarks/DEMO.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ikirere.report.collect import read_run


def table(folder: Path) -> str:
    run = read_run(folder)
    environment = run.environment
    lines = ["| stage | seconds | peak memory, MB |", "|---|---|---|"]
    done = [stage for stage in run.stages.values() if stage.spent is not None]
    lines += [f"| {s.name} | {s.spent:.1f} | {(s.peak_rss or 0) / 1e6:,.0f} |" for s in done]
    whole = sum(stage.spent or 0 for stage in done)
    most = max((stage.peak_rss or 0 for stage in done), default=0)
    lines.append(f"| **all** | **{whole:.1f}** | **{most / 1e6:,.0f}** |")
    machine = (
        f"{environment.get('cpu')}, {environment.get('cores_usable')} cores, Python {environment.get('python')}, "
        f"torch {environment.get('torch')}"
    )
    return "\n".join(lines) + f"\n\nOne run of `{run.name}`, seed {run.recipe['seed']}. {machine}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/demo"), help="run folder")
    parser.add_argument("--write", type=Path, default=None, help="Markdown file for the table")
    args = parser.parse_args()
    text = table(args.run)
    print(text)
    if args.write:
        args.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
