"""The stages `data` (sources to documents) and `shards` (documents to tokens)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ikirere.data.build import build
from ikirere.data.divide import SEAL, SPLITS, documents_file
from ikirere.data.reading import read_json
from ikirere.data.shards import write_shards
from ikirere.data.sources import fingerprint, size
from ikirere.programme.measure import read_rows
from ikirere.programme.stage import StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.tokenizer.base import Tokenizer

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


class DataStage:
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

    def external(self, recipe: Recipe, recipe_folder: Path) -> str:
        return " ".join(fingerprint(source, recipe_folder) for source in recipe.data.sources)

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


class ShardStage:
    """Artifacts: the folder shards/ and the raw rows shards.jsonl. Metrics: tokens/<domain>/<split>,
    bytes_per_token/<domain>/<split>."""

    name: ClassVar[str] = "shards"
    needs: ClassVar[tuple[str, ...]] = ("data", "tokenizer")

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return {}

    def external(self, recipe: Recipe, recipe_folder: Path) -> str:
        return ""

    def run(self, context: StageContext) -> StageResult:
        data = context.inputs["data"]
        tokenizer = Tokenizer.load(context.inputs["tokenizer"] / "tokenizer")
        total = sum(int(row["bytes"]) for row in read_rows(data / "domains.jsonl"))
        with context.progress("encoding documents", total, "B") as bar:
            manifest = write_shards(
                {s: data / documents_file(s) for s in SPLITS},
                tokenizer,
                context.folder / "shards",
                bar.advance,
                read_json(data / SEAL),
            )
        fields = ("domain", "split", "documents", "tokens", "bytes")
        context.write_rows("shards.jsonl", ({k: entry[k] for k in fields} for entry in manifest["shards"]))
        result = StageResult(artifacts=["shards", "shards.jsonl"])
        for entry in manifest["shards"]:
            here = {k: entry[k] for k in ("domain", "split")}
            name = f"{entry['domain']}/{entry['split']}"
            result.metrics += [
                context.metric(f"tokens/{name}", "scalar", "shards.jsonl", "tokens", where=here),
                context.metric(
                    f"bytes_per_token/{name}", "ratio", "shards.jsonl", "bytes", "tokens", where=here
                ),
            ]
        return result
