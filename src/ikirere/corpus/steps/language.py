"""Documents in other languages are dropped, by an offline detector (py3langid, a naive Bayes model over
bytes)."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pyarrow as pa

from ikirere.corpus.steps.prose import code_domains, prose, sample
from ikirere.corpus.steps.step import DROPPED, LedgerBuilder, Outcome, StepContext, filtered, in_domains
from ikirere.errors import UserError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

SAMPLE = 1_800  # characters of prose that the detector reads
MIN_BYTES = 60  # of prose; the detector guesses at random below it
UNDETERMINED = "und"  # ISO 639-2's code
SCORES = pa.schema(
    [("id", pa.string()), ("domain", pa.string()), ("language", pa.string()), ("score", pa.float64())]
)


@functools.cache
def detector() -> LanguageIdentifier:
    """The model, loaded once per process (about a second), restricted to languages with an ISO 639-1 code.

    Without the restriction short English texts are taken for creoles: on 1,208 English documents of LaTeX
    98.2% instead of 99.3% are recognised.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    made = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    made.set_languages([label for label in made.labels if len(label) == 2])
    return made


def probabilities(text: str) -> dict[str, float]:
    """Language to probability, the likeliest first, of the text's prose; empty where there is too little of
    it."""
    looked_at = sample(prose(text), SAMPLE)
    if len(looked_at.encode()) < MIN_BYTES:
        return {}
    return dict(detector().rank(looked_at))


class Detection(NamedTuple):
    """keep: whether the document stays. language: ISO 639-1 code, or `und`. score: probability of the
    likeliest kept language, None where there was too little prose. by: who decided, `detector`, `declared` or
    `nobody`."""

    keep: bool
    language: str
    score: float | None
    by: str


class LanguageFilter:
    """Drops documents whose likeliest language is none of those kept (reason `language`).

    What is read: 1,800 characters from the beginning, middle and end of the prose; code, markup and formulas
    are cut out first. A document is kept where the probability of the likeliest kept language is at least
    `min_score`.

    The detector wins over the language that a source declares: a page filed under French that is still
    English is an English page. The declared language decides only where the detector cannot: no language
    reaches `min_score`, or there are fewer than 60 bytes of prose. A document with so little prose and no
    declared language is kept.

    Not covered: documents that mix languages are judged as a whole; the variants of one language are not
    distinguished.
    """

    name: ClassVar[str] = "language"

    def __init__(self, context: StepContext) -> None:
        settings = context.data.language
        if settings is None:
            raise UserError("data.language: the step needs its section")
        self.keep = tuple(settings.keep)
        self.min_score = settings.min_score
        self.domains = settings.domains
        self.but = code_domains(context.data)

    def prepare(self, parts: Sequence[Path]) -> None:
        """Raises UserError for a language that the detector does not know."""
        known = detector().labels
        for language in self.keep:
            if language not in known:
                raise UserError(
                    f"data.language.keep: {language!r} is not known; accepted are {', '.join(sorted(known))}"
                )

    def fingerprint(self) -> str:
        return f"py3langid {importlib.metadata.version('py3langid')}"

    def judge(self, text: str, declared: str) -> Detection:
        """declared: the language that the source declares ('en', 'pt-BR', '')."""
        found = probabilities(text)
        declared = declared.lower().replace("_", "-").split("-")[0]
        if not found:
            if declared in detector().labels:
                return Detection(declared in self.keep, declared, None, "declared")
            return Detection(True, UNDETERMINED, None, "nobody")
        kept = max(self.keep, key=lambda language: found.get(language, 0.0))
        likeliest, best = next(iter(found.items()))
        score = found.get(kept, 0.0)
        if score >= self.min_score:
            return Detection(True, kept, score, "detector")
        if best >= self.min_score or declared not in found:
            return Detection(False, likeliest, score, "detector")
        return Detection(declared in self.keep, declared, score, "declared")

    def __call__(self, table: pa.Table) -> Outcome:
        ledger = LedgerBuilder(self.name)
        keep: list[bool] = []
        scores: list[dict[str, Any]] = []
        columns = table.select(["id", "text", "path", "source", "domain", "licence", "lang"])
        for row, looked_at in zip(columns.to_pylist(), in_domains(table, self.domains, self.but)):
            if not looked_at:
                keep.append(True)
                continue
            verdict = self.judge(row["text"], row["lang"] or "")
            keep.append(verdict.keep)
            scores.append(
                {
                    "id": row["id"],
                    "domain": row["domain"],
                    "language": verdict.language,
                    "score": verdict.score,
                }
            )
            if not verdict.keep:
                score = None if verdict.score is None else round(verdict.score, 4)
                detail = {"language": verdict.language, "score": score, "by": verdict.by}
                ledger.add(row, DROPPED, "language", detail=detail)
        return Outcome(
            filtered(table, keep), ledger.table(), {"scores": pa.Table.from_pylist(scores, schema=SCORES)}
        )
