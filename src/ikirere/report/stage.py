"""The report stage: what the run folder holds, as one HTML file and one notebook."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ikirere.common.files import json_sha256
from ikirere.programme.code_fingerprint import code_hash
from ikirere.programme.environment import made_in
from ikirere.programme.stage import Stage, StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.report.collect import read_run
from ikirere.report.html import write_report
from ikirere.report.notebook import write_notebook
from ikirere.stages import MODULES


class ReportStage(Stage):
    """Writes report.html and report.ipynb from the other stages' results. It measures nothing and nothing reads it."""

    name: ClassVar[str] = "report"
    always: ClassVar[bool] = True  # a run that a gate stopped is reported too
    reads_results: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("data", "tokenizer", "shards", "pretrain", "sft", "dpo", "evaluate")

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        """The whole recipe, which the report prints, without the tracker's key, which is a secret."""
        return recipe.model_dump(mode="json", exclude={"tracker": {"key"}})

    def external(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        """The code and the environment of now, beside which the report puts those that made each result."""
        code = {name: code_hash(module) for name, module in MODULES.items()}
        return {"code of the stages": json_sha256(code), "environment": json_sha256(made_in())}

    def run(self, context: StageContext) -> StageResult:
        run = read_run(context.run_folder, skip=(self.name,))
        write_report(run, context.folder / "report.html")
        write_notebook(run, context.folder / "report.ipynb")
        return StageResult(artifacts=["report.html", "report.ipynb"])
