"""The stage `shards`: documents to token shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ikirere.common.files import read_json, read_rows
from ikirere.corpus.seal import SEAL, SPLITS, documents_file
from ikirere.errors import UserError
from ikirere.programme.stage import Stage, StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokens.shards import ShardManifest, open_shards, read_manifest, write_shards


class ShardStage(Stage):
    """Encodes the documents of both splits. Artifacts: the folder shards/ and the raw rows shards.jsonl."""

    name: ClassVar[str] = "shards"
    needs: ClassVar[tuple[str, ...]] = ("data", "tokenizer")
    makes: ClassVar[tuple[str, ...]] = ("tokens/{domain}/{split}", "bytes_per_token/{domain}/{split}")
    outputs: ClassVar[tuple[str, ...]] = ("shards",)

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return {}  # all that it does follows from its inputs

    def check(self, recipe: Recipe, recipe_folder: Path) -> None:
        if missing := [name for name in self.needs if name not in recipe.stages]:
            raise UserError(f"stages: shards needs the stage {missing[0]} before it")

    def run(self, context: StageContext) -> StageResult:
        data = context.inputs["data"]
        tokenizer = Tokenizer.load(context.inputs["tokenizer"] / "tokenizer")
        manifest = self._finished(context, tokenizer, read_json(data / SEAL))
        if manifest is None:
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
        rows = [dict(entry) for entry in manifest["shards"]]
        context.write_rows("shards.jsonl", ({k: row[k] for k in fields} for row in rows))
        result = StageResult(artifacts=["shards", "shards.jsonl"])
        for entry in manifest["shards"]:
            here = {"domain": entry["domain"], "split": entry["split"]}
            name = f"{entry['domain']}/{entry['split']}"
            result.metrics += [
                context.metric(f"tokens/{name}", "scalar", "shards.jsonl", "tokens", where=here),
                context.metric(
                    f"bytes_per_token/{name}", "ratio", "shards.jsonl", "bytes", "tokens", where=here
                ),
            ]
        return result

    def _finished(self, context: StageContext, tokenizer: Tokenizer, seal: object) -> ShardManifest | None:
        """The manifest of whole shards of these documents that are there already; None where they are not."""
        folder = context.folder / "shards"
        try:
            open_shards(folder, tokenizer_sha256=tokenizer.sha256)
            manifest = read_manifest(folder)
        except UserError:
            return None
        return manifest if manifest["seal"] == seal else None
