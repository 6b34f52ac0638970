"""The stage `data`: sources to clean, split documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ikirere.corpus.build.inputs import check_inputs, external_inputs, machine_inputs
from ikirere.corpus.build.pipeline import build
from ikirere.corpus.readers import size
from ikirere.corpus.seal import SEAL, SPLITS, documents_file
from ikirere.programme.stage import Stage, StageContext, StageResult
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
    kept_share/<step>; where their steps ran near_duplicate_pairs_left (training with training, training with
    held-out), contaminated_documents (in training), both counted in what was written, and unchecked_evaluation_sets."""

    name: ClassVar[str] = "data"
    makes: ClassVar[tuple[str, ...]] = (
        "documents/{domain}",
        "bytes/{domain}",
        "heldout_share/{domain}",
        "dropped/{reason}",
        "kept_share/{step}",
        "near_duplicate_pairs_left",
        "contaminated_documents",
        "unchecked_evaluation_sets",
    )
    outputs: ClassVar[tuple[str, ...]] = (*(documents_file(s) for s in SPLITS), SEAL, "domains.jsonl")

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return {"data": recipe.data.result_settings(), "seed": recipe.seed}

    def measuring(self, recipe: Recipe) -> Mapping[str, Any]:
        """What only the manifests and the list of missing evaluation sets depend on."""
        data: dict[str, Any] = {"version": recipe.data.version}
        if recipe.data.decontaminate is not None:
            data["decontaminate"] = {"on_missing": recipe.data.decontaminate.on_missing}
        phases = [{"name": name, "mixture": weights} for name, weights in mixtures(recipe).items()]
        return {"data": data, "pretrain": {"phases": phases}}

    def external(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        return external_inputs(recipe.data, recipe_folder)

    def surroundings(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        return machine_inputs(recipe.data, recipe_folder)

    def check(self, recipe: Recipe, recipe_folder: Path) -> None:
        check_inputs(recipe.data, recipe_folder)

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
        rows: Mapping[str, Any] = counts
        for name in RAW:
            context.write_rows(name, rows[name.removesuffix(".jsonl")])
        result = StageResult(artifacts=list(FILES))
        add = result.metrics.append
        for domain in (row["domain"] for row in counts["domains"]):
            here = {"domain": domain}
            for field in ("documents", "bytes"):
                add(context.metric(f"{field}/{domain}", "scalar", "domains.jsonl", field, where=here))
            name = f"heldout_share/{domain}"
            add(context.metric(name, "ratio", "domains.jsonl", "heldout_bytes", "bytes", where=here))
        for reason in counts["dropped"]:
            if reason["action"] == "dropped":
                here = {"step": reason["step"], "reason": reason["reason"]}
                name = f"dropped/{reason['reason']}"
                add(context.metric(name, "scalar", "dropped.jsonl", "documents", where=here))
        for check in (row["check"] for row in counts["checks"]):
            add(context.metric(check, "scalar", "checks.jsonl", "count", where={"check": check}))
        for step in counts["steps"]:
            if step["bytes_in"]:
                here, name = {"step": step["step"]}, f"kept_share/{step['step']}"
                add(context.metric(name, "ratio", "steps.jsonl", "bytes_out", "bytes_in", where=here))
        return result


def mixtures(recipe: Recipe) -> dict[str, dict[str, float]]:
    """The mixture of each phase of pretraining, by the phase's name."""
    return {phase.name: dict(phase.mixture) for phase in recipe.pretrain.phases}
