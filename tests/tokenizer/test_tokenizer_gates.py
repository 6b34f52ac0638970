"""What a tokenizer is gated on: nothing lost, nothing forged, the same ids everywhere."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers

from ikirere.programme.gates import judge_all
from ikirere.programme.metrics import Metric, measure
from ikirere.programme.stage import StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Gate
from ikirere.recipe.sections import Tokenizer as Config
from ikirere.recipe.yamlio import parse
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.report import measure_documents, totals
from ikirere.tokenizer.specials import SPECIALS
from ikirere.tokenizer.stage import TokenizerStage
from ikirere.tokenizer.train import train_tokenizer

ROOT = Path(__file__).parents[2]
LIBRARY = Path(sysconfig.get_paths()["stdlib"])
TEXTS = [file.read_text(encoding="utf-8")[:4000] for file in sorted(LIBRARY.glob("[a-h]*.py"))[:30]]
ZERO = ("round_trip_failures", "parity_failures", "forged_specials", "unknown_tokens")
KINDS = {
    "bpe": Config(kind="bpe", vocab_size=700),
    "unigram": Config(kind="unigram", vocab_size=700),
    "indented": Config(kind="unigram", vocab_size=700, indent_transform=True),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("gates")
    made = {
        name: train_tokenizer(TEXTS[:10], config, folder / name, seed=0) for name, config in KINDS.items()
    }
    made["indented"] = Tokenizer(made["indented"]._text, indent_transform=True)
    return made


# ---------------------------------------------------------------- whatever the text


@given(text=st.text(max_size=80))
@settings(max_examples=50, deadline=None)
def test_any_unicode_comes_back_with_the_ids_of_record(trained: dict[str, Tokenizer], text: str) -> None:
    for row in (
        next(measure_documents(t, [{"id": "x", "domain": "d", "text": text}])) for t in trained.values()
    ):
        assert (row["round_trip"], row["round_trip_failed"], row["id_parity"], row["parity_failed"]) == (
            1,
            0,
            1,
            0,
        )
        assert (row["forged"], row["unknown"]) == (0, 0)


@given(raw=st.binary(max_size=60))
@settings(max_examples=50, deadline=None)
def test_any_bytes_come_back(trained: dict[str, Tokenizer], raw: bytes) -> None:
    for name, tokenizer in trained.items():
        # Bytes as ids are exact. With line ends and indents as tokens of their own, white space waits for what follows.
        ids = [len(SPECIALS) + byte for byte in raw]
        assert tokenizer.decode_bytes(ids) == raw, name
        assert tokenizer.decode(ids) == raw.decode("utf-8", errors="replace"), name
        # Bytes that were read as text, in either usual way.
        for text in (raw.decode("utf-8", errors="replace"), raw.decode("latin-1")):
            assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode(), name


@given(
    lines=st.lists(
        st.tuples(
            st.sampled_from(["", " ", "  ", "    ", "        ", "\t", "\t\t", " \t", "   "]),
            st.text(max_size=8),
        ),
        max_size=8,
    ),
    end=st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\u2028", "\x0b"]),
)
@settings(max_examples=50, deadline=None)
def test_odd_indentation_comes_back(trained: dict[str, Tokenizer], lines, end: str) -> None:
    text = end.join(a + b for a, b in lines)
    for name, tokenizer in trained.items():
        assert tokenizer.decode(tokenizer.encode(text)) == text, name


def test_counts_of_a_document(trained: dict[str, Tokenizer]) -> None:
    tokenizer = trained["bpe"]
    texts = ["é a\n\nb c", "é a\n", ""]
    rows = list(
        measure_documents(tokenizer, [{"id": str(i), "domain": "d", "text": t} for i, t in enumerate(texts)])
    )
    ids = tokenizer.encode_batch(texts)
    assert [row["tokens"] for row in rows] == [len(i) for i in ids]
    assert [row["bytes"] for row in rows] == [9, 5, 0]
    assert [row["words"] for row in rows] == [4, 2, 0]
    assert [row["lines"] for row in rows] == [3, 1, 1]
    assert [row["single_bytes"] for row in rows] == [sum(17 <= i < 273 for i in part) for part in ids]
    assert [row["new_ids"] for row in rows] == [len(set(ids[0])), len(set(ids[1]) - set(ids[0])), 0]
    assert totals(rows) == {"documents": 3, **dict.fromkeys(ZERO, 0)}


# ---------------------------------------------------------------- what fails is counted


class Forging(Tokenizer):
    """Text may forge special tokens: an encoder of record that reads their spellings."""

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        backend = Backend.from_str(self._text)
        backend.encode_special_tokens = False
        return [backend.encode(text, add_special_tokens=False).ids for text in texts]


class Drifting(Tokenizer):
    """An encoder that gives each text back, with other ids than tokenizer.json says."""

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        return [[len(SPECIALS) + byte for byte in text.encode()] for text in texts]


class Losing(Tokenizer):
    """An encoder that loses the end."""

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        return [ids[:-1] for ids in super().encode_batch(texts)]


@pytest.mark.parametrize(
    ("broken", "count"),
    [
        (Forging, {"forged_specials": 2}),
        (Drifting, {"parity_failures": 2}),
        (Losing, {"round_trip_failures": 2, "parity_failures": 2, "forged_specials": 2}),
    ],
)
def test_what_breaks_is_counted(
    trained: dict[str, Tokenizer], broken: type[Tokenizer], count: dict[str, int]
) -> None:
    documents = [{"id": str(i), "domain": "d", "text": f"def f{i}(): return"} for i in range(2)]
    rows = list(measure_documents(broken(trained["bpe"]._text), documents))
    assert totals(rows) == {"documents": 2, **dict.fromkeys(ZERO, 0), **count}
    assert [row["id_parity"] for row in rows] == [int(not count.get("parity_failures"))] * 2


# ---------------------------------------------------------------- the stage and its gates


def stage(folder: Path, section: dict[str, object], heldout: list[str]) -> tuple[StageContext, StageResult]:
    tree = parse((ROOT / "recipes" / "demo.yaml").read_text(), "recipe").value
    tree["tokenizer"] = section
    data, own = folder / "data", folder / "tokenizer"
    data.mkdir()
    own.mkdir()
    for name, texts in (("train", TEXTS[:20]), ("heldout", heldout)):
        rows = {
            "id": [f"{name}{i}" for i in range(len(texts))],
            "text": texts,
            "domain": ["code"] * len(texts),
        }
        pq.write_table(pa.table(rows), data / f"documents-{name}.parquet")

    @contextmanager
    def progress(label: str, total: float, unit: str) -> Iterator[object]:
        yield type("Bar", (), {"advance": lambda self, amount=1, **shown: None})()

    context = StageContext(
        recipe=Recipe.model_validate(tree),
        recipe_folder=folder,
        folder=own,
        inputs={"data": data},
        rehearsal=False,
        progress=progress,  # type: ignore[arg-type]
        say=lambda line: None,
        track=lambda metrics, step: None,
    )
    return context, TokenizerStage().run(context)


def gates(targets: dict[str, tuple[str, float]]) -> list[Gate]:
    return [Gate(name=m, metric=m, op=op, target=t, on_miss="stop") for m, (op, t) in targets.items()]


def verdicts(metrics: list[Metric], targets: dict[str, tuple[str, float]]) -> dict[str, str]:
    return {judged.metric: judged.verdict for judged in judge_all(gates(targets), metrics)}


NOTHING = dict.fromkeys(ZERO, ("==", 0.0))


def test_a_sound_tokenizer_passes(tmp_path: Path) -> None:
    context, result = stage(tmp_path, {"kind": "bpe", "vocab_size": 600, "train_bytes": 100_000}, TEXTS[20:])
    assert verdicts(result.metrics, NOTHING) == dict.fromkeys(ZERO, "PASS")
    named = {metric.name: metric for metric in result.metrics}
    assert set(named) == {*ZERO, "round_trip", "id_parity", "bytes_per_token/code", "tokens_per_line/code"}
    assert (named["round_trip"].value, named["id_parity"].value) == (1, 1)
    assert named["round_trip"].n == named["id_parity"].n == 10  # every held-out document
    # A share that has to be 1 lies in its own band, however good: the counts are what gates can ask for.
    assert verdicts(result.metrics, {"round_trip": ("==", 1.0)}) == {"round_trip": "INSIDE NOISE"}
    # Each metric follows from its raw file again.
    for metric in result.metrics:
        again = measure(
            context.folder, metric.name, metric.kind, metric.raw, metric.field, metric.over, metric.where
        )
        assert again == metric
        assert metric.raw in result.artifacts
    rows = [json.loads(line) for line in (context.folder / "heldout.jsonl").read_text().splitlines()]
    (counted,) = [json.loads(line) for line in (context.folder / "totals.jsonl").read_text().splitlines()]
    assert counted == totals(rows)
    assert sum(row["bytes"] for row in rows) / sum(row["tokens"] for row in rows) == pytest.approx(
        named["bytes_per_token/code"].value
    )


def test_one_lost_document_of_many_is_a_miss(tmp_path: Path, trained: dict[str, Tokenizer]) -> None:
    backend = Backend.from_str(trained["bpe"]._text)
    backend.normalizer = normalizers.NFC()
    backend.save(str(tmp_path / "tokenizer.json"))
    section = {"kind": "pretrained", "vocab_size": 700, "pretrained": "tokenizer.json"}
    _, result = stage(tmp_path, section, [*TEXTS[20:], "cafe\u0301\n"])
    found = verdicts(result.metrics, NOTHING)
    assert found == {
        "round_trip_failures": "MISS",
        "parity_failures": "PASS",
        "forged_specials": "PASS",
        "unknown_tokens": "PASS",
    }
    named = {metric.name: metric for metric in result.metrics}
    assert named["round_trip_failures"].value == 1 and named["round_trip"].value == pytest.approx(10 / 11)
