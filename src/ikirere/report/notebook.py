"""The report as a notebook: the same tables and figures, with the code that makes them from the run folder.

The outputs are those that the code cells give, put in while the notebook is written, so that it reads
without running anything; run it again to check.
"""

from __future__ import annotations

import html
from pathlib import Path

from ikirere.common.files import atomic
from ikirere.report.collect import Run
from ikirere.report.html import gate_rows
from ikirere.report.sections import Block, blocks
from ikirere.report.tables import Table, band, number

SETUP = """from pathlib import Path
from IPython.display import HTML, SVG, display
from ikirere.report.sections import blocks
from ikirere.report.collect import read_run
from ikirere.report.notebook import gates_table, table_html

run = read_run(Path({folder!r}), skip=("report",))
sections = blocks(run)"""


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
        (g["stage"], g["name"], f"{g['op']} {number(g['target'])}", number(g["value"]), band(g), g["verdict"])
        for g in gate_rows(run)
    ]
    return Table(("Stage", "Gate", "Target", "Measured", "Band", "Verdict"), rows)


def _display(kind: str, text: str) -> dict[str, object]:
    return {"output_type": "display_data", "data": {kind: text}, "metadata": {}}


def _section(index: int, block: Block) -> tuple[str, list[dict[str, object]]]:
    code = (
        f"section = sections[{index}]\n"
        "for figure in section.figures:\n    display(SVG(figure.svg))\n"
        "for table in section.tables:\n    display(HTML(table_html(table)))"
    )
    outputs = [_display("image/svg+xml", figure.svg) for figure in block.figures]
    outputs += [_display("text/html", table_html(table)) for table in block.tables]
    return code, outputs


def write_notebook(run: Run, path: Path) -> None:
    """Write the notebook whole or not at all."""
    from nbformat import NotebookNode, v4, write

    def code(number_: int, source: str, outputs: list[dict[str, object]]) -> NotebookNode:
        nodes = [NotebookNode(output) for output in outputs]
        cell = v4.new_code_cell(source, execution_count=number_, outputs=nodes)
        cell["id"] = f"code-{number_}"
        return cell

    def text(number_: int, source: str) -> NotebookNode:
        cell = v4.new_markdown_cell(source)
        cell["id"] = f"text-{number_}"
        return cell

    # Seen from report/, where the notebook lies, the run folder is one up.
    cells = [
        text(0, f"# {run.name}\n\n{run.recipe.get('description', '')}"),
        code(1, SETUP.format(folder=".."), []),
    ]
    cells += [
        text(1, "## Gates"),
        code(2, "HTML(table_html(gates_table(run)))", [_display("text/html", table_html(gates_table(run)))]),
    ]
    for index, block in enumerate(blocks(run)):
        source, outputs = _section(index, block)
        cells += [text(index + 2, f"## {block.title}\n\n{block.note}"), code(index + 3, source, outputs)]
    notebook = v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    with atomic(path) as handle:
        write(notebook, handle)
