"""Tokenizers side by side: locked plans, figures that follow from rows, verdicts, and the commands."""

from __future__ import annotations

import json
import math
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.errors import Refused, UserError
from ikirere.programme import gates
from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer import command, compare
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.compare import Arm, Criterion, Document, Plan, default_criteria, fingerprint, verdict
from ikirere.tokenizer.report import COUNTS, METRICS, RATIOS, Figures
from ikirere.tokenizer.train import train_tokenizer

ROOT = Path(__file__).parents[2]
LIBRARY = Path(sysconfig.get_paths()["stdlib"])
FILES = sorted(LIBRARY.glob("*.py"))
TEXTS = [file.read_text(encoding="utf-8")[:6000] for file in FILES[:30]]
DOCUMENTS = [Document(file.name, "code", file.read_text(encoding="utf-8")[:4000]) for file in FILES[30:54]]
PROSE = [Document(f"p{i}", "text", f"Some words, number {i}, and more of them. " * (i + 1)) for i in range(5)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    for name, size in (("small", 500), ("large", 900)):
        train_tokenizer(TEXTS, Config(kind="bpe", vocab_size=size), folder / name, seed=0)
    return folder


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
def done(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, compare.Comparison]:
    out = tmp_path_factory.mktemp("out")
    return out, compare.compare(out, arms(trained), [*DOCUMENTS, *PROSE], CRITERIA, seed=3)


# ---------------------------------------------------------------- figures


def test_every_figure_follows_from_the_rows(trained: Path, done: tuple[Path, compare.Comparison]) -> None:
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


# ---------------------------------------------------------------- verdicts


def test_verdicts(done: tuple[Path, compare.Comparison]) -> None:
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


reals = st.floats(-3, 3) | st.just(math.nan)


@given(
    value=reals,
    half=st.none() | st.floats(0, 2),
    op=st.sampled_from(sorted(compare.OPERATORS)),
    target=st.floats(-3, 3),
)
@settings(max_examples=100, deadline=None)
def test_verdicts_are_those_of_the_programmes_gates(value, half, op, target) -> None:
    low, high = (None, None) if half is None or math.isnan(value) else (value - half, value + half)
    assert verdict(value, low, high, op, target) == gates.verdict(value, low, high, op, target)


@given(
    metric=st.sampled_from(METRICS),
    domain=st.none() | st.from_regex(r"[a-z0-9-]{1,8}", fullmatch=True),
    op=st.sampled_from(sorted(compare.OPERATORS)),
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
    trained: Path, done: tuple[Path, compare.Comparison], tmp_path: Path
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


def test_altered_plans_are_refused(
    trained: Path, done: tuple[Path, compare.Comparison], tmp_path: Path
) -> None:
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
    with pytest.raises(UserError, match="cannot be read"):
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


# ---------------------------------------------------------------- commands


def test_files_become_documents(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name, data in {
        "a.py": b"x = 1\r\n", "b/c.CPP": b"int x;", "b/d.md": "é".encode(), "e.json": b"{}",
        "f.bin": b"\0", "g.py": b"\xff", ".hidden/h.py": b"1", "b/i.odd": b"odd",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
    said: list[str] = []
    found = command.read_files(tmp_path, said.append)
    assert [(d.id, d.domain, d.text) for d in found] == [
        ("a.py", "code", "x = 1\r\n"),
        ("b/c.CPP", "code", "int x;"),
        ("b/d.md", "text", "é"),
        ("e.json", "data", "{}"),
    ]
    assert said == [f"{tmp_path}: 1 files left out (unreadable or not UTF-8)"]
    assert [d.domain for d in command.read_files(f"{tmp_path}/**/*.odd")] == ["other"]
    assert [d.text for d in command.read_files(tmp_path / "b" / "i.odd")] == ["odd"]
    for nothing in (f"{tmp_path}/*.none", tmp_path / "none", f"{tmp_path}/**x/y"):
        with pytest.raises(UserError, match=r"no text file there|not a glob"):
            command.read_files(nothing)


def parquet(file: Path, texts: dict[str, list[str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"{d}{i}", "domain": d, "text": t} for d, group in texts.items() for i, t in enumerate(group)
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)


def test_a_run_folder_gives_its_held_out_documents(tmp_path: Path) -> None:
    file = tmp_path / "data" / "documents-heldout.parquet"
    parquet(file, {"code": ["a", "b"], "docs": ["c"]})
    for place in (tmp_path, tmp_path / "data", file):
        found = command.read_held_out(place)
        assert [(d.id, d.domain, d.text) for d in found] == [
            ("code0", "code", "a"),
            ("code1", "code", "b"),
            ("docs0", "docs", "c"),
        ]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tree = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())
    tree["tokenizer"] = {"kind": "bpe", "vocab_size": 500, "train_bytes": 100_000}
    tree["model"]["vocab_size"] = 500
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def test_train_from_a_run_and_from_files(tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "run"
    said: list[str] = []
    with pytest.raises(UserError, match=r"documents-train\.parquet: not there; give --text FILES"):
        command.train(recipe, out=tmp_path / "t", run_folder=run, say=said.append)
    parquet(run / "data" / "documents-train.parquet", {"code": TEXTS})
    made = command.train(recipe, out=tmp_path / "t", run_folder=run, say=said.append)
    assert made.vocab_size == 500 and Tokenizer.load(tmp_path / "t").sha256 == made.sha256
    assert any(line.startswith("code: 0.1 MB") for line in said)
    with pytest.raises(UserError, match=r"already holds a tokenizer\.json; give another --out"):
        command.train(recipe, out=tmp_path / "t", run_folder=run, say=said.append)
    files = tmp_path / "files"
    files.mkdir()
    for i, text in enumerate(TEXTS):
        (files / f"{i:02d}.py").write_text(text, encoding="utf-8")
    overrides = ["tokenizer.train_bytes=60000", "tokenizer.vocab_size=450"]
    other = command.train(recipe, overrides, tmp_path / "o", run, [str(files)], said.append)
    assert other.vocab_size == 450
    assert not list(tmp_path.rglob("*.part*"))


def test_report_says_what_it_gives(trained: Path, tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "documents-heldout.parquet", {"code": TEXTS[:5], "docs": ["A word.\n"]})
    said: list[str] = []
    values = command.report(trained / "large", tmp_path, say=said.append)
    assert set(values) == {"", "code", "docs"}
    size = sum(len(text.encode()) for text in TEXTS[:5])
    count = sum(len(ids) for ids in Tokenizer.load(trained / "large").encode_batch(TEXTS[:5]))
    assert values["code"]["bytes_per_token"] == size / count
    assert values[""]["forged_specials"] == values[""]["round_trip_failures"] == 0
    text = "\n".join(said)
    assert "large: 900 ids" in text and f"| large | {size / count:.3f} (" in text
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="no document with text"):
        command.report(trained / "large", tmp_path / "empty.py", say=said.append)


def test_the_comparison_from_the_command_line(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for document in DOCUMENTS[:10]:
        (folder / document.id).write_bytes(document.text.encode())
    said: list[str] = []
    made = command.compare(
        [str(trained / "large")],
        [f"base={trained / 'small'}"],
        folder,
        tmp_path / "out",
        "base",
        say=said.append,
    )
    assert [arm.name for arm in made.plan.arms] == ["large", "base"]
    assert [arm.candidate for arm in made.plan.arms] == [True, False]
    assert not made.missed
    assert "PASS: large: bytes_per_token/code >= base" in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "plan.json",
        "report.json",
        "report.md",
        "rows.jsonl",
        "speed.jsonl",
    ]
    with pytest.raises(UserError, match="--baseline gpt: no arm has this name; arms are large, base"):
        command.compare(
            [str(trained / "large")], [f"base={trained}"], folder, tmp_path / "x", "gpt", say=said.append
        )
    one = command.compare(
        [str(trained / "large")], [], folder, tmp_path / "y", None, ["bytes_per_token > 9"], say=said.append
    )
    assert one.missed and "MISS: large: bytes_per_token > 9" in said
