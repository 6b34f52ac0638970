"""The stage `shards`: documents to token shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ikirere.common.files import read_json, read_rows
from ikirere.corpus.build.split_documents import SEAL, SPLITS, documents_file
from ikirere.programme.stage import Stage, StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokens.shards import write_shards


class ShardStage(Stage):
    """Artifacts: the folder shards/ and the raw rows shards.jsonl. Metrics: tokens/<domain>/<split>,
    bytes_per_token/<domain>/<split>."""

    name: ClassVar[str] = "shards"
    needs: ClassVar[tuple[str, ...]] = ("data", "tokenizer")

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return {}

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
