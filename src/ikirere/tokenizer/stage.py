"""The stage "tokenizer": training documents in, `tokenizer/` and its figures on held-out documents out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from ikirere.common.files import atomic_folder, file_sha256, read_rows
from ikirere.corpus.document import read_documents
from ikirere.errors import UserError
from ikirere.programme.metrics import Metric
from ikirere.programme.stage import Progress, Stage, StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.corpus import choose_sample
from ikirere.tokenizer.pretrained import find_file
from ikirere.tokenizer.report import HeldOutRow, measure_documents, totals
from ikirere.tokenizer.train import KINDS, train_tokenizer

FOLDER = "tokenizer"
ROWS = "heldout.jsonl"
TOTALS = "totals.jsonl"
SHARES = ("round_trip", "id_parity")  # of documents
FAILURES = ("round_trip_failures", "parity_failures", "forged_specials", "unknown_tokens")
TRAIN, HELDOUT = "documents-train.parquet", "documents-heldout.parquet"


class TokenizerStage(Stage):
    """Trains or adopts the recipe's tokenizer and measures it on every held-out document."""

    name: ClassVar[str] = "tokenizer"
    needs: ClassVar[tuple[str, ...]] = ("data",)
    makes: ClassVar[tuple[str, ...]] = (
        "bytes_per_token/{domain}",
        "tokens_per_line/code",
        *SHARES,
        *FAILURES,
    )
    outputs: ClassVar[tuple[str, ...]] = (FOLDER,)

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        settings = recipe.tokenizer.result_settings()
        if recipe.tokenizer.kind == "pretrained":  # nothing is trained
            return {"tokenizer": {key: settings[key] for key in ("kind", "vocab_size", "pretrained")}}
        return {"tokenizer": settings, "seed": recipe.seed}

    def external(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        """Hash of an adopted tokenizer.json on this machine; a hub name is part of `config`."""
        name = recipe.tokenizer.pretrained
        file = find_file(name, recipe_folder) if name else None
        return {"tokenizer.pretrained": file_sha256(file)} if file else {}

    def check(self, recipe: Recipe, recipe_folder: Path) -> None:
        config = recipe.tokenizer
        if "data" not in recipe.stages:
            raise UserError("stages: tokenizer needs the stage data before it")
        if not recipe.data.heldout:
            raise UserError("data.heldout: 0 leaves no document to measure the tokenizer on; raise it")
        if missing := sorted(set(config.mixture) - recipe.data.domains):
            raise UserError(
                f"tokenizer.mixture: no source gives the domain {', '.join(missing)}; "
                f"domains are {', '.join(sorted(recipe.data.domains))}"
            )
        if config.mixture and not any(config.mixture.values()):
            raise UserError("tokenizer.mixture: all weights are 0; give at least one domain a weight")
        KINDS[config.kind].check(config, recipe_folder)

    def run(self, context: StageContext) -> StageResult:
        data = context.inputs["data"]
        for leftover in context.folder.glob("training.part.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        tokenizer = self._train(context, data / TRAIN)
        rows = context.write_rows(ROWS, self._measure(context, tokenizer, data / HELDOUT))
        counted = context.write_rows(TOTALS, [totals(read_rows(context.folder / rows))])
        return StageResult(self._metrics(context, rows, counted), [FOLDER, rows, counted])

    def _train(self, context: StageContext, parquet: Path) -> Tokenizer:
        config = context.recipe.tokenizer
        texts: Iterable[str] = ()
        if config.kind == "pretrained":
            context.say(f"adopting {config.pretrained}")
        else:
            sample = choose_sample(parquet, config.train_bytes, config.mixture, context.seed)
            for domain, taken in sample.taken.items():
                if taken < 0.9 * sample.wanted[domain]:
                    context.say(f"{domain} has {taken} of the {sample.wanted[domain]} bytes of its share")
            size = sum(sample.taken.values())
            context.say(f"training {config.kind} with {config.vocab_size} ids on {size / 1e6:.1f} MB")
            texts = _watched(context, sample, size)
        final = context.folder / FOLDER
        with atomic_folder(final) as part, _share(context, f"train {config.kind} tokenizer") as progress:
            train_tokenizer(texts, config, part, context.seed, context.recipe_folder, progress)
        return Tokenizer.load(final)

    def _measure(self, context: StageContext, tokenizer: Tokenizer, parquet: Path) -> Iterator[HeldOutRow]:
        documents = [row for row in read_documents(parquet, ("id", "domain", "text")) if row["text"]]
        if not documents:
            raise UserError(
                "data.heldout: no document is held out, so the tokenizer cannot be measured; raise it"
            )
        with context.progress("measure tokenizer", len(documents), "documents") as bar:
            for row in measure_documents(tokenizer, documents):
                yield row
                bar.advance(1)

    def _metrics(self, context: StageContext, rows: str, counted: str) -> list[Metric]:
        """Shares for reading; for gates that allow none, counts: a share of 1 or 0 always lies in its own band."""
        found = read_rows(context.folder / rows)
        domains = sorted({row["domain"] for row in found if row["tokens"]})
        metrics = [
            context.metric(f"bytes_per_token/{domain}", "ratio", rows, "bytes", "tokens", {"domain": domain})
            for domain in domains
        ]
        if "code" in domains:
            metrics.append(
                context.metric("tokens_per_line/code", "ratio", rows, "tokens", "lines", {"domain": "code"})
            )
        metrics += [context.metric(name, "proportion", rows, name) for name in SHARES]
        metrics += [context.metric(name, "scalar", counted, name) for name in FAILURES]
        return metrics


def _watched(context: StageContext, texts: Iterable[str], size: int) -> Iterator[str]:
    """The texts, with a bar of the bytes read."""
    with context.progress("read training text", size, "B") as bar:
        for text in texts:
            yield text
            bar.advance(len(text.encode()))


@contextmanager
def _share(context: StageContext, label: str) -> Iterator[Callable[[float], None]]:
    """A progress bar in per cent, drawn once a trainer reports its progress (BPE is too fast to report any)."""
    with ExitStack() as stack:
        bar: Progress | None = None
        done = 0.0

        def advance(share: float) -> None:
            nonlocal bar, done
            if bar is None:
                bar = stack.enter_context(context.progress(label, 100, "%"))
            bar.advance(100 * (share - done))
            done = share

        yield advance
