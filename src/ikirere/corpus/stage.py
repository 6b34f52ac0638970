"""The stage `data`: sources to clean, split documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ikirere.corpus.build.pipeline import build
from ikirere.corpus.build.split_documents import SEAL, SPLITS, documents_file
from ikirere.corpus.readers import fingerprint, size
from ikirere.programme.stage import Stage, StageContext, StageResult
from ikirere.recipe.data import PythonEnvironment
from ikirere.recipe.schema import Recipe

RAW = (
    "domains.jsonl",
    "licences.jsonl",
    "dropped.jsonl",
    "steps.jsonl",
    "mixtures.jsonl",
    "samples.jsonl",
    "checks.jsonl",
)
FILES = (*(documents_file(s) for s in SPLITS), "ledger", "manifests", SEAL, "counts.json", *RAW)


class DataStage(Stage):
    """Artifacts: documents-train.parquet, documents-heldout.parquet, ledger/, manifests/, seal.json, counts.json and
    raw rows. Metrics: documents/<domain>, bytes/<domain>, heldout_share/<domain>, dropped/<reason>,
    kept_share/<step>; where their steps ran near_duplicate_pairs_left, contaminated_documents (in training),
    unchecked_evaluation_sets."""

    name: ClassVar[str] = "data"
    needs: ClassVar[tuple[str, ...]] = ()

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        # Neither the engine nor the number of workers changes the result.
        data = recipe.data.model_dump(mode="json", exclude={"engine", "workers"})
        return {"data": data, "seed": recipe.seed, "mixtures": mixtures(recipe)}

    def external(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        return {
            f"data.sources.{i}": fingerprint(source, recipe_folder)
            for i, source in enumerate(recipe.data.sources)
            if not isinstance(source, PythonEnvironment)
        }

    def surroundings(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        return {
            f"data.sources.{i}": fingerprint(source, recipe_folder)
            for i, source in enumerate(recipe.data.sources)
            if isinstance(source, PythonEnvironment)
        }

    def run(self, context: StageContext) -> StageResult:
        data = context.recipe.data
        total = sum(size(source, context.recipe_folder) for source in data.sources)
        with context.progress("reading documents", total, "B") as bar:
            counts = build(
                data,
                context.recipe_folder,
                context.folder,
                context.seed,
                mixtures(context.recipe),
                bar.advance,
                context.say,
            )
        for name in RAW:
            context.write_rows(name, counts[name.removesuffix(".jsonl")])
        result = StageResult(artifacts=list(FILES))
        add = result.metrics.append
        for row in counts["domains"]:
            here = {"domain": row["domain"]}
            for field in ("documents", "bytes"):
                add(context.metric(f"{field}/{row['domain']}", "scalar", "domains.jsonl", field, where=here))
            name = f"heldout_share/{row['domain']}"
            add(context.metric(name, "ratio", "domains.jsonl", "heldout_bytes", "bytes", where=here))
        for row in counts["dropped"]:
            if row["action"] == "dropped":
                here = {"step": row["step"], "reason": row["reason"]}
                add(
                    context.metric(
                        f"dropped/{row['reason']}", "scalar", "dropped.jsonl", "documents", where=here
                    )
                )
        for row in counts["checks"]:
            add(
                context.metric(row["check"], "scalar", "checks.jsonl", "count", where={"check": row["check"]})
            )
        for row in counts["steps"]:
            here = {"step": row["step"]}
            name = f"kept_share/{row['step']}"
            if row["bytes_in"]:
                add(context.metric(name, "ratio", "steps.jsonl", "bytes_out", "bytes_in", where=here))
        return result


def mixtures(recipe: Recipe) -> dict[str, dict[str, float]]:
    """The mixture of each phase of pretraining, by the phase's name."""
    return {phase.name: dict(phase.mixture) for phase in recipe.pretrain.phases}
