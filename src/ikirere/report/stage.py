"""The report stage: what the run folder holds, as one HTML file and one notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ikirere.programme.stage import Stage, StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.report.collect import read_run
from ikirere.report.html import write_report
from ikirere.report.notebook import write_notebook


class ReportStage(Stage):
    """Writes report.html and report.ipynb from the other stages' results."""

    name: ClassVar[str] = "report"
    always: ClassVar[bool] = True  # a run that a gate stopped is reported too
    needs: ClassVar[tuple[str, ...]] = ("data", "tokenizer", "shards", "pretrain", "sft", "dpo", "evaluate")

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return {"recipe": recipe.model_dump(mode="json")}

    def run(self, context: StageContext) -> StageResult:
        run = read_run(context.run_folder, skip=(self.name,))
        write_report(run, context.folder / "report.html")
        write_notebook(run, context.folder / "report.ipynb")
        return StageResult(artifacts=["report.html", "report.ipynb"])
