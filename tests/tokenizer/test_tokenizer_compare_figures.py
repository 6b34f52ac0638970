"""Figures of tokenizers: intervals over documents, paired differences, and where there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ikirere.tokenizer.report import COUNTS, RATIOS, Figures


def made_up(values: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    blank = dict.fromkeys([c for pair in RATIOS.values() for c in pair] + [*COUNTS.values(), "new_ids"], 1)
    return [blank | {"domain": "d", "bytes": b, "tokens": t} for b, t in values]


def test_intervals_are_a_bootstrap_over_documents() -> None:
    rng = np.random.default_rng(5)
    tokens = rng.integers(50, 2000, 200)
    sizes = (tokens * rng.normal(4, 0.8, 200)).astype(int)
    rows = made_up([(int(b), int(t)) for b, t in zip(sizes, tokens)])
    found = Figures({"a": rows}, {"a": 10}, seed=1).get("a", "bytes_per_token/d")
    assert found is not None and found.low is not None and found.high is not None
    # The textbook error of a ratio of sums (Cochran 1977, by linearisation) is what it has to come near to.
    ratio = sizes.sum() / tokens.sum()
    error = math.sqrt(((sizes - ratio * tokens) ** 2).sum() / 199 * 200) / tokens.sum()
    assert found.value == pytest.approx(ratio)
    assert found.low == pytest.approx(ratio - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(ratio + 1.96 * error, abs=0.3 * error)
    again = Figures({"a": rows}, {"a": 10}, seed=1).get("a", "bytes_per_token/d")
    other = Figures({"a": rows}, {"a": 10}, seed=2).get("a", "bytes_per_token/d")
    assert again == found and other != found


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    sizes, tokens = rng.integers(100, 9000, 60), rng.integers(100, 3000, 60)
    a = made_up([(int(b), int(t)) for b, t in zip(sizes, tokens)])
    b = made_up([(int(b), int(t) + 1) for b, t in zip(sizes, tokens)])
    figures = Figures({"a": a, "b": b}, {"a": 9, "b": 9})
    alone, found = figures.get("a", "bytes_per_token"), figures.difference("a", "b", "bytes_per_token")
    assert alone and found and None not in (alone.low, alone.high, found.low, found.high)
    assert 0 < found.low < found.value < found.high  # certain, though each alone is far from it
    assert found.high - found.low < (alone.high - alone.low) / 50
    same = figures.difference("a", "a", "bytes_per_token")
    assert same is not None and (same.value, same.low, same.high) == (0, 0, 0)
    assert figures.difference("a", "c", "bytes_per_token") is None


def test_one_document_has_no_interval_and_none_has_no_figure() -> None:
    figures = Figures({"a": made_up([(40, 10)])}, {"a": 9})
    found = figures.get("a", "bytes_per_token/d")
    assert found is not None and (found.value, found.low, found.high) == (4, None, None)
    assert Figures({"a": made_up([(40, 0)])}, {"a": 9}).get("a", "bytes_per_token") is None
    assert not Figures({"a": []}, {"a": 9}).found
    rows = made_up([(40, 10), (30, 0)])
    found = Figures({"a": rows}, {"a": 9}).get("a", "bytes_per_token/d")
    assert found is not None and math.isfinite(found.high or math.nan)  # draws without a token are left out
    unread = [row | {"round_trip_failed": None} for row in rows]
    assert Figures({"a": unread}, {"a": 9}).get("a", "round_trip_failures") is None
