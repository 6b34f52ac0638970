"""The stages `data` (sources to documents) and `shards` (documents to tokens)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ikirere.data.build import SPLITS, build, documents_file
from ikirere.data.shards import write_shards
from ikirere.data.sources import fingerprint, size
from ikirere.programme.measure import read_rows
from ikirere.programme.stage import StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.tokenizer.base import Tokenizer


class DataStage:
    """Artifacts: documents-train.parquet, documents-heldout.parquet, dropped.parquet, counts.json and the raw rows
    domains.jsonl, licences.jsonl, dropped.jsonl. Metrics: documents/<domain>, bytes/<domain>,
    heldout_share/<domain>, dropped/<reason>."""

    name: ClassVar[str] = "data"
    needs: ClassVar[tuple[str, ...]] = ()

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return recipe.data.model_dump(mode="json", exclude={"evaluation_sets"})

    def external(self, recipe: Recipe, recipe_folder: Path) -> str:
        return " ".join(fingerprint(source, recipe_folder) for source in recipe.data.sources)

    def run(self, context: StageContext) -> StageResult:
        data = context.recipe.data
        total = sum(size(source, context.recipe_folder) for source in data.sources)
        with context.progress("reading documents", total, "B") as bar:
            counts = build(data, context.recipe_folder, context.folder, bar.advance, context.say)
        context.write_rows("domains.jsonl", counts["domains"])
        context.write_rows("licences.jsonl", counts["licences"])
        context.write_rows("dropped.jsonl", counts["dropped"])
        result = StageResult(
            artifacts=[documents_file(s) for s in SPLITS]
            + ["dropped.parquet", "counts.json", "domains.jsonl", "licences.jsonl", "dropped.jsonl"]
        )
        for row in counts["domains"]:
            here = {"domain": row["domain"]}
            for field in ("documents", "bytes"):
                name = f"{field}/{row['domain']}"
                result.metrics.append(context.metric(name, "scalar", "domains.jsonl", field, where=here))
            name = f"heldout_share/{row['domain']}"
            result.metrics.append(
                context.metric(name, "ratio", "domains.jsonl", "heldout_bytes", "bytes", where=here)
            )
        for row in counts["dropped"]:
            here = {"reason": row["reason"]}
            name = f"dropped/{row['reason']}"
            result.metrics.append(context.metric(name, "scalar", "dropped.jsonl", "documents", where=here))
        return result


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
