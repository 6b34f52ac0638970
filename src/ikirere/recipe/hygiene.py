"""The sections of `data` that set what is cleaned, dropped, compared and sealed.

A section that is absent (null) leaves its step out; the report names the steps that did not run.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ikirere.recipe.section import WATCHING, Fraction, Positive, Section


class Normalise(Section):
    """Encoding repair and Unicode policy. Domains of code are never altered."""

    repair: bool = Field(default=True, description="undo wrongly decoded UTF-8 (mojibake) in prose")
    unicode: Literal["none", "nfc"] = Field(default="nfc", description="composition of prose")
    code_domains: tuple[str, ...] = Field(
        default=("code",),
        description="domains whose text is never altered; rows of a source can only join them",
    )


class NearDuplicates(Section):
    """MinHash LSH, every candidate verified by the exact Jaccard similarity of its shingles."""

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    bands: Positive = 25
    rows_per_band: Positive = Field(default=5, description="hashes per band")
    shingle_words: Positive = 5
    spill_bytes: Positive = Field(
        default=1_000_000_000,
        description="memory for band tables; what is more is sorted on disk",
        json_schema_extra=WATCHING,
    )
    against: tuple[str, ...] = Field(
        default=(), description="Parquet files or snapshots that are compared with and never dropped"
    )


class Language(Section):
    """Documents in other languages are dropped, by an offline detector."""

    keep: tuple[str, ...] = Field(default=("en",), min_length=1, description="ISO 639-1 codes")
    min_score: Fraction = Field(default=0.5, description="probability of the best kept language")
    domains: tuple[str, ...] | None = Field(
        default=None, description="domains looked at; default: all but code"
    )


class Pii(Section):
    """Personal data, replaced by typed placeholders."""

    kinds: tuple[Literal["email", "phone", "ip", "secret", "card"], ...] = (
        "email",
        "phone",
        "ip",
        "secret",
        "card",
    )
    domains: tuple[str, ...] | None = Field(default=None, description="domains looked at; default: all")


class Policy(Section):
    """Documents with too many words of a list are dropped."""

    words: str | None = Field(
        default=None, description="file with one word or phrase per line; default: the shipped list"
    )
    max_share: Fraction = Field(default=0.01, description="matched words over all words")
    min_matches: Positive = 3
    domains: tuple[str, ...] | None = Field(
        default=None, description="domains looked at; default: all but code"
    )


class Quality(Section):
    """Published rules, an n-gram model's perplexity and a classifier, both trained on the spot."""

    rules: tuple[Literal["gopher", "gopher-repetition", "c4", "fineweb"], ...] = (
        "gopher",
        "gopher-repetition",
        "fineweb",
    )
    domains: tuple[str, ...] | None = Field(
        default=None, description="domains looked at; default: all but code"
    )
    seed_domains: tuple[str, ...] = Field(
        default=(),
        description="domains taken as good text, to train the n-gram model and the classifier; empty: neither",
    )
    max_perplexity_quantile: Fraction = Field(
        default=1.0,
        description="of each domain, the share with the lowest perplexity is kept; 1 keeps all (measured on at most 10,000 documents of each)",
    )
    min_classifier: Fraction = Field(default=0.0, description="lowest probability of good text; 0 keeps all")


class Decontaminate(Section):
    """No training text holds an evaluation item."""

    ngram: Positive = Field(default=13, description="words of an n-gram")
    min_coverage: Fraction = Field(
        default=0.5, description="share of an item's n-grams that must be in the document"
    )
    drop: Literal["training", "evaluation"] = Field(
        default="training",
        description="which side leaves; `evaluation` lists the items to leave out of scores",
    )
    on_missing: Literal["stop", "warn"] = Field(
        default="warn",
        description="what to do where an evaluation set cannot be read",
        json_schema_extra=WATCHING,
    )
