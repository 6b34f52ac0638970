"""Documents of low quality are dropped: by published rules, by perplexity, by likeness to text that is taken
as good."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from ikirere.corpus.steps import quality_rules
from ikirere.corpus.steps.prose import code_domains
from ikirere.corpus.steps.quality_rules import RULES
from ikirere.corpus.steps.seed_models import SeedModels, train
from ikirere.corpus.steps.step import (
    CHANGED,
    DROPPED,
    LedgerBuilder,
    Outcome,
    StepContext,
    filtered,
    in_domains,
    with_text,
)
from ikirere.errors import UserError

PERPLEXITY, CLASSIFIER = "perplexity", "classifier"
MEASURES = (*(rule.name for group in RULES.values() for rule in group), PERPLEXITY, CLASSIFIER)
SCORES = pa.schema(
    [("id", pa.string()), ("domain", pa.string()), *((name, pa.float64()) for name in MEASURES)]
)
Broken = tuple[str, float, float]  # reason, value, threshold


class QualityFilter:
    """Drops documents that break a rule; the reason is the rule's name, the detail its value and threshold.

    Rules run in the order of FineWeb's pipeline: gopher and gopher-repetition on the text as it comes in,
    then c4, which takes lines out (ledger: `changed`, reason `c4-lines`, with counts by cause), then fineweb
    on what c4 left. The first rule that is broken is the reason; `also` in the detail lists the others.

    With `seed_domains` two models are trained on them (see `seed_models`), and the text as it comes in is
    scored by them: `perplexity` above its domain's quantile and `classifier` below `min_classifier` drop a
    document. The quantile is of all documents of a domain that are looked at, or of a sample of 10,000,
    whatever the rules do. Documents of seed domains are judged as all others, by models that did not see
    them.

    The log `scores` has a row per document that was looked at and a column per measure, null where it was not
    asked for. Not covered: the rules are made for English web pages. They drop most lists, tables and LaTeX.
    """

    name: ClassVar[str] = "quality"

    def __init__(self, context: StepContext) -> None:
        settings = context.data.quality
        if settings is None:
            raise UserError("data.quality: the step needs its section")
        self.settings = settings
        self.but = code_domains(context.data)
        self.folder, self.seed = context.folder, context.seed
        self.models: SeedModels | None = None
        self.thresholds: dict[str, float] = {}
        self._say = context.say

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_say": None}  # only the main process prepares, and so speaks

    def looked_at(self, domain: str) -> bool:
        domains = self.settings.domains
        return domain in domains if domains is not None else domain not in self.but

    def prepare(self, parts: Sequence[Path]) -> None:
        """Trains the models where the recipe names seed domains."""
        if not self.settings.seed_domains:
            return
        self.models, summary = train(parts, self.settings, self.looked_at, self.folder, self.seed)
        self.thresholds = summary.thresholds
        judged = "no classifier, for there are too few documents of other domains"
        if summary.accuracy is not None:
            judged = (
                f"the classifier is right on {summary.accuracy:.1%} of texts that it did not see "
                f"(area under curve {summary.auc:.3f})"
            )
        good = f"{summary.seed_documents} documents of {', '.join(self.settings.seed_domains)}"
        self._say(f"quality: trained on {good}; {judged}")

    def fingerprint(self) -> str:
        """Hash of the rules and their bounds and, where models are trained, of the library that trains them."""
        library = importlib.metadata.version("scikit-learn") if self.settings.seed_domains else ""
        return hashlib.sha256(f"{RULES!r}{library}".encode()).hexdigest()

    def measure(self, identity: str, text: str) -> tuple[dict[str, float | None], str, dict[str, int]]:
        """(values by the names of MEASURES, as far as they are asked for; the text as the rules leave it;
        lines that c4 took out, by cause)."""
        values: dict[str, float | None] = {}
        rules = self.settings.rules
        kept = text
        removed: dict[str, int] = {}
        for group, function in (
            ("gopher", quality_rules.gopher),
            ("gopher-repetition", quality_rules.repetition),
        ):
            if group in rules:
                values.update(zip((rule.name for rule in RULES[group]), function(text)))
        if "c4" in rules:
            found, kept, removed = quality_rules.c4(text)
            values.update(zip((rule.name for rule in RULES["c4"]), found))
        if "fineweb" in rules:
            values.update(zip((rule.name for rule in RULES["fineweb"]), quality_rules.fineweb(kept)))
        if self.models is not None:
            values[PERPLEXITY] = self.models.perplexity(identity, text)
            values[CLASSIFIER] = self.models.probability(identity, text)
        return values, kept, removed

    def broken(self, domain: str, values: dict[str, float | None]) -> list[Broken]:
        """Every rule that the values break, in the order in which they count."""
        found: list[Broken] = []
        for group in RULES.values():
            for rule in group:
                value = values.get(rule.name)
                bound = None if value is None else rule.broken(value)
                if value is not None and bound is not None:
                    found.append((rule.name, value, bound))
        perplexity, probability = values.get(PERPLEXITY), values.get(CLASSIFIER)
        if perplexity is not None and perplexity > self.thresholds.get(domain, float("inf")):
            found.append((PERPLEXITY, perplexity, self.thresholds[domain]))
        if probability is not None and probability < self.settings.min_classifier:
            found.append((CLASSIFIER, probability, self.settings.min_classifier))
        return found

    def __call__(self, table: pa.Table) -> Outcome:
        ledger = LedgerBuilder(self.name)
        keep: list[bool] = []
        texts: list[str] = []
        scores: list[dict[str, Any]] = []
        columns = table.select(["id", "text", "path", "source", "domain", "licence"])
        for row, looked_at in zip(columns.to_pylist(), in_domains(table, self.settings.domains, self.but)):
            keep.append(True)
            texts.append(row["text"])
            if not looked_at:
                continue
            values, text, removed = self.measure(row["id"], row["text"])
            scores.append({"id": row["id"], "domain": row["domain"], **values})
            broken = self.broken(row["domain"], values)
            if broken:
                keep[-1] = False
                (reason, value, bound), *others = broken
                detail: dict[str, Any] = {"value": round(value, 5), "threshold": round(bound, 5)}
                if others:
                    detail["also"] = [name for name, _, _ in others]
                ledger.add(row, DROPPED, reason, detail=detail)
            elif text != row["text"]:
                texts[-1] = text
                ledger.add(row, CHANGED, "c4-lines", detail=removed or {"citations": True})
        changed = with_text(table, texts)
        return Outcome(
            filtered(changed, keep), ledger.table(), {"scores": pa.Table.from_pylist(scores, schema=SCORES)}
        )
