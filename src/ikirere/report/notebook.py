"""The report as a notebook: the same tables and figures, with the code that makes them from the run folder.

The outputs are those of the code cells, written with the notebook, so that it can be read without running it.
"""

from __future__ import annotations

import html
from pathlib import Path

from ikirere.common.files import atomic
from ikirere.report.collect import Run
from ikirere.report.html import gate_rows
from ikirere.report.section import ReportSection
from ikirere.report.sections import build_sections
from ikirere.report.tables import Table, band, number

SETUP = """from pathlib import Path
from IPython.display import HTML, SVG, display
from ikirere.report.sections import build_sections
from ikirere.report.collect import read_run
from ikirere.report.notebook import gates_table, table_html, verdict_table

run = read_run(Path({folder!r}), skip=("report",))
sections = build_sections(run)"""


def table_html(table: Table) -> str:
    """A table as HTML."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    title = f"<b>{html.escape(table.title)}</b>" if table.title else ""
    return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def gates_table(run: Run) -> Table:
    """All gates with verdicts."""
    rows = [
        (
            g["stage"] + " (stale)" * g["stale"],
            g["name"],
            f"{g['op']} {number(g['target'])}",
            number(g["value"]),
            band(g),
            g["verdict"],
        )
        for g in gate_rows(run)
    ]
    return Table(("Stage", "Gate", "Target", "Measured", "Band", "Verdict"), rows)


def verdict_table(run: Run) -> Table:
    """The verdict with what blocks it and what it warns of."""
    reasons = [("blocks", reason) for reason in run.verdict.blocking]
    reasons += [("warning", reason) for reason in run.verdict.warnings]
    rows = [(kind, reason.stage, reason.name, reason.why) for kind, reason in reasons]
    return Table(("", "Stage", "Gate", "Why"), rows, title=run.verdict.lines()[0])


def _display(kind: str, text: str) -> dict[str, object]:
    return {"output_type": "display_data", "data": {kind: text}, "metadata": {}}


def _section(index: int, section: ReportSection) -> tuple[str, list[dict[str, object]]]:
    code = (
        f"section = sections[{index}]\n"
        "for figure in section.figures:\n    display(SVG(figure.svg))\n"
        "for table in section.tables:\n    display(HTML(table_html(table)))"
    )
    outputs = [_display("image/svg+xml", figure.svg) for figure in section.figures]
    outputs += [_display("text/html", table_html(table)) for table in section.tables]
    return code, outputs


def write_notebook(run: Run, path: Path) -> None:
    """Write the notebook whole or not at all."""
    from nbformat import NotebookNode, v4, write

    cells: list[NotebookNode] = []

    def text(source: str) -> None:
        cells.append(v4.new_markdown_cell(source, id=f"cell-{len(cells)}"))

    def code(source: str, outputs: list[dict[str, object]]) -> None:
        number_ = 1 + sum(cell.cell_type == "code" for cell in cells)
        nodes = [NotebookNode(output) for output in outputs]
        cells.append(
            v4.new_code_cell(source, execution_count=number_, outputs=nodes, id=f"cell-{len(cells)}")
        )

    text(f"# {run.name}\n\n{run.recipe.get('description', '')}")
    # The notebook lies in report/, so the run folder is one up.
    code(SETUP.format(folder=".."), [])
    for title, name, table in (
        ("Verdict", "verdict_table", verdict_table(run)),
        ("Gates", "gates_table", gates_table(run)),
    ):
        text(f"## {title}")
        code(f"HTML(table_html({name}(run)))", [_display("text/html", table_html(table))])
    for index, section in enumerate(build_sections(run)):
        text("\n\n".join(filter(None, (f"## {section.title}", section.warning, section.note))))
        code(*_section(index, section))
    notebook = v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    with atomic(path) as handle:
        write(notebook, handle)
