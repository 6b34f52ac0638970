"""Tokenizers side by side: figures that follow from rows, verdicts, and locked plans."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from compare_helpers import DOCUMENTS, two_sizes

from ikirere.common.intervals import OPERATORS
from ikirere.errors import Refused, UserError
from ikirere.tokenizer import compare
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.compare import fingerprint
from ikirere.tokenizer.comparison import (
    Arm,
    Comparison,
    Criterion,
    Document,
    Plan,
    default_criteria,
)
from ikirere.tokenizer.report import COUNTS, METRICS, RATIOS

PROSE = [Document(f"p{i}", "text", f"Some words, number {i}, and more of them. " * (i + 1)) for i in range(5)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_sizes(tmp_path_factory.mktemp("compare"))


def arms(trained: Path) -> list[Arm]:
    return [
        Arm("large", str(trained / "large"), True),
        Arm("small", str(trained / "small"), False),
        Arm("absent", str(trained / "absent.gguf"), False),
    ]


CRITERIA = [
    Criterion.parse(text)
    for text in (
        "bytes_per_token/code >= small",
        "bytes_per_token/code >= 100",
        "round_trip_failures == 0",
        "bytes_per_token/code >= absent",
        "bytes_per_token/law >= 1",
    )
]


@pytest.fixture(scope="module")
def done(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    out = tmp_path_factory.mktemp("out")
    return out, compare.compare(out, arms(trained), [*DOCUMENTS, *PROSE], CRITERIA, seed=3)


# ---------------------------------------------------------------- figures


def test_every_figure_follows_from_the_rows(trained: Path, done: tuple[Path, Comparison]) -> None:
    out, _ = done
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    figures = {(f["arm"], f["name"]): f for f in report["figures"]}
    assert len(rows) == 2 * 29 and len(figures) == len(report["figures"])
    for arm, size in (("large", 900), ("small", 500)):
        tokenizer = Tokenizer.load(trained / arm)
        mine = [row for row in rows if row["arm"] == arm]
        for document, row in zip([*DOCUMENTS, *PROSE], mine, strict=True):
            ids = tokenizer.encode(document.text)
            assert (row["id"], row["domain"]) == (document.id, document.domain)
            assert row["tokens"] == len(ids) and row["bytes"] == len(document.text.encode())
            assert row["words"] == len(document.text.split())
            assert row["lines"] == len(document.text.removesuffix("\n").split("\n"))
            assert row["single_bytes"] == sum(len(tokenizer.decode_bytes([i])) == 1 for i in ids)
        for domain in ("", "/code", "/text"):
            chosen = [row for row in mine if domain in ("", f"/{row['domain']}")]
            for metric, (over, under) in RATIOS.items():
                figure = figures[arm, metric + domain]
                assert figure["value"] == sum(r[over] for r in chosen) / sum(r[under] for r in chosen)
                assert figure["low"] <= figure["value"] <= figure["high"]
                assert figure["low"] < figure["high"] or domain == "/text"
                assert figure["n"] == len(chosen)
            for metric, count in COUNTS.items():
                assert figures[arm, metric + domain]["value"] == sum(row[count] for row in chosen) == 0
        used = {i for d in (*DOCUMENTS, *PROSE) for i in tokenizer.encode(d.text)}
        assert figures[arm, "vocabulary_use"]["value"] == len(used) / size


# ---------------------------------------------------------------- verdicts


def test_verdicts(done: tuple[Path, Comparison]) -> None:
    out, comparison = done
    found = {judged.criterion: judged for judged in comparison.verdicts}
    assert {name: judged.verdict for name, judged in found.items()} == {
        "bytes_per_token/code >= small": "PASS",
        "bytes_per_token/code >= 100": "MISS",
        "round_trip_failures == 0": "PASS",
        "bytes_per_token/code >= absent": "NOT RUN",
        "bytes_per_token/law >= 1": "NOT RUN",
    }
    assert comparison.missed
    assert "No such file" in found["bytes_per_token/code >= absent"].reason
    assert "not measured for large" in found["bytes_per_token/law >= 1"].reason
    difference = found["bytes_per_token/code >= small"]
    a, b = (comparison.figures.get(arm, "bytes_per_token/code") for arm in ("large", "small"))
    assert a and b and difference.value == pytest.approx(a.value - b.value)
    assert difference.low is not None and difference.low > 0
    page = (out / "report.md").read_text(encoding="utf-8")
    assert "| large | bytes_per_token/code >= 100 | MISS |" in page
    assert "NOT RUN: " in page and comparison.plan.sha256[:12] in page
    assert "| absent | not measured |" in page


def test_a_target_inside_the_band_is_inside_noise(trained: Path, done, tmp_path: Path) -> None:
    _, comparison = done
    figure = comparison.figures.get("large", "bytes_per_token/code")
    assert figure is not None
    criterion = Criterion("bytes_per_token/code", ">=", figure.value - 1e-3)
    again = compare.compare(tmp_path, arms(trained)[:1], DOCUMENTS, [criterion], seed=3)
    assert [judged.verdict for judged in again.verdicts] == ["INSIDE NOISE"]
    assert not again.missed


@given(
    metric=st.sampled_from(METRICS),
    domain=st.none() | st.from_regex(r"[a-z0-9-]{1,8}", fullmatch=True),
    op=st.sampled_from(sorted(OPERATORS)),
    target=st.floats(-1e6, 1e6) | st.from_regex(r"[a-z][a-z0-9:-]{0,8}", fullmatch=True),
    space=st.sampled_from(["", " "]),
)
@settings(max_examples=60, deadline=None)
def test_criteria_are_read_as_they_are_written(metric, domain, op, target, space) -> None:
    name = f"{metric}/{domain}" if domain else metric
    shown = repr(target) if isinstance(target, float) else target
    if shown in ("nan", "inf", "infinity"):
        return
    assert Criterion.parse(f"{name}{space}{op}{space}{shown}") == Criterion(name, op, target)


@pytest.mark.parametrize(
    "text", ["", "bytes_per_token", "nonsense >= 1", "bytes_per_token => 1", "bytes_per_token >="]
)
def test_other_criteria_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"criterion .* metric of bytes_per_token, "):
        Criterion.parse(text)


def test_speed_is_no_criterion() -> None:
    with pytest.raises(UserError, match="only reported"):
        Criterion.parse("encode_mb_per_cpu_second >= 3")


def test_default_criteria() -> None:
    assert [str(c) for c in default_criteria("llama-3", ["code", "text"])] == [
        "bytes_per_token/code >= llama-3",
        "tokens_per_line/code <= llama-3",
        "round_trip_failures == 0",
        "parity_failures == 0",
        "unknown_tokens == 0",
    ]
    assert str(default_criteria("x", ["text"])[0]) == "bytes_per_token >= x"
    assert len(default_criteria(None, ["code"])) == 3


# ---------------------------------------------------------------- the plan is locked


def test_the_plan_is_written_before_any_number(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        locked = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
        assert locked["plan"]["criteria"][0]["metric"] == "bytes_per_token/code"
        assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
        raise RuntimeError("measured")

    monkeypatch.setattr(Tokenizer, "encode_batch", refuse)
    with pytest.raises(RuntimeError, match="measured"):
        compare.compare(tmp_path, arms(trained), DOCUMENTS, CRITERIA)


def test_the_same_plan_gives_the_same_report_and_another_is_refused(
    trained: Path, done: tuple[Path, Comparison], tmp_path: Path
) -> None:
    for name in ("plan.json", "rows.jsonl", "report.json"):
        (tmp_path / name).write_bytes((done[0] / name).read_bytes())
    everything = [*DOCUMENTS, *PROSE]
    before = json.loads((tmp_path / "report.json").read_text())
    compare.compare(tmp_path, arms(trained), everything, CRITERIA, seed=3)
    after = json.loads((tmp_path / "report.json").read_text())
    assert {k: v for k, v in before.items() if not k.startswith("encode")} == {
        k: v for k, v in after.items() if not k.startswith("encode")
    }
    others = {
        "criteria": (arms(trained), everything, CRITERIA[1:], 3),
        "documents": (arms(trained), everything[1:], CRITERIA, 3),
        "seed": (arms(trained), everything, CRITERIA, 4),
        "arms": ([*arms(trained)[:2], Arm("absent", str(trained / "small"), False)], everything, CRITERIA, 3),
    }
    for what, (given_arms, documents, criteria, seed) in others.items():
        with pytest.raises(Refused, match=rf"plan\.json: was locked with other {what}; .* another --out"):
            compare.compare(tmp_path, given_arms, documents, criteria, seed)
    assert json.loads((tmp_path / "report.json").read_text()) == after


def test_a_retrained_candidate_needs_a_new_folder(trained: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    Tokenizer.load(trained / "small").save(mine)
    out = tmp_path / "out"
    compare.compare(out, [Arm("mine", str(mine), True)], DOCUMENTS, CRITERIA[2:3])
    Tokenizer.load(trained / "large").save(mine)
    with pytest.raises(Refused, match="other arms"):
        compare.compare(out, [Arm("mine", str(mine), True)], DOCUMENTS, CRITERIA[2:3])


def test_altered_plans_are_refused(trained: Path, done: tuple[Path, Comparison], tmp_path: Path) -> None:
    plan = json.loads((done[0] / "plan.json").read_text(encoding="utf-8"))
    documents = [*DOCUMENTS, *PROSE]

    def again(folder: Path) -> None:
        compare.compare(folder, arms(trained), documents, CRITERIA, seed=3)

    altered = json.loads(json.dumps(plan))
    altered["plan"]["criteria"][1]["target"] = 1.0
    (tmp_path / "plan.json").write_text(json.dumps(altered))
    with pytest.raises(Refused, match=r"plan\.json: was altered"):
        again(tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json: not JSON"):
        again(tmp_path)
    (tmp_path / "plan.json").unlink()
    (tmp_path / "report.json").write_text(json.dumps({"plan_sha256": "0"}))
    with pytest.raises(Refused, match=r"holds report\.json and no plan\.json"):
        again(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(Refused, match="another plan"):
        again(tmp_path)


@given(
    texts=st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=4),
    place=st.integers(0, 3),
)
@settings(max_examples=30, deadline=None)
def test_any_change_of_a_document_changes_the_plan(texts: list[str], place: int) -> None:
    documents = [Document(str(i), "d", text) for i, text in enumerate(texts)]
    changed = list(documents)
    i = place % len(texts)
    changed[i] = Document(changed[i].id, "d", changed[i].text + "x")
    a, b = (Plan((), (), fingerprint(d)) for d in (documents, changed))
    assert a.sha256 != b.sha256
    assert a.sha256 == Plan((), (), fingerprint(documents)).sha256


def test_arms_and_criteria_that_do_not_fit_are_told(trained: Path, tmp_path: Path) -> None:
    mine = arms(trained)
    cases: list[tuple[list[Arm], list[Document], list[Criterion], str]] = [
        ([mine[0], Arm("large", "x", False)], DOCUMENTS, [], "two arms are called large"),
        (mine[1:], DOCUMENTS, [], "no tokenizer to judge"),
        (mine, [Document("x", "d", "")], [], "no document with text"),
        (mine, DOCUMENTS, [Criterion.parse("bytes_per_token >= llama")], "llama is no number and no arm"),
        ([Arm("gone", str(trained / "gone"), True)], DOCUMENTS, [], "gone: no vocabulary there"),
    ]
    for given_arms, documents, criteria, said in cases:
        with pytest.raises(UserError, match=said):
            compare.compare(tmp_path / "out", given_arms, documents, criteria)
    assert not (tmp_path / "out").exists()
