"""Training, adopting, sampling and the stage."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from ikirere.errors import UserError
from ikirere.programme.stage import StageContext
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer import worker
from ikirere.tokenizer.base import Tokenizer, byte_characters
from ikirere.tokenizer.corpus import choose
from ikirere.tokenizer.pretrained import from_ranks
from ikirere.tokenizer.specials import SPECIALS
from ikirere.tokenizer.stage import TokenizerStage
from ikirere.tokenizer.train import train_tokenizer

ROOT = Path(__file__).parents[2]
LIBRARY = Path(sysconfig.get_paths()["stdlib"])
TEXTS = [file.read_text(encoding="utf-8")[:8000] for file in sorted(LIBRARY.glob("[a-h]*.py"))[:40]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(
        TEXTS, Config(kind="bpe", vocab_size=600), tmp_path_factory.mktemp("small"), seed=0
    )


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_same_texts_give_the_same_file(tmp_path: Path, kind: str) -> None:
    config = Config(kind=kind, vocab_size=500)
    again = [train_tokenizer(TEXTS[:10], config, tmp_path / str(i), seed=0).sha256 for i in range(2)]
    assert again[0] == again[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_corpus_too_small_names_the_largest_possible(tmp_path: Path, kind: str) -> None:
    texts = ["a small text of few words, a small text of few words\n"] * 3
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size: 5000 .*largest possible is (\d+)") as caught:
        train_tokenizer(texts, Config(kind=kind, vocab_size=5000), tmp_path / "t", seed=0)
    assert not (tmp_path / "t").exists()
    largest = int(str(caught.value).split("largest possible is ")[1].split()[0])
    fits = Config(kind=kind, vocab_size=largest, preserve=())
    assert train_tokenizer(texts, fits, tmp_path / "t", seed=0).vocab_size == largest


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_too_small_is_refused_before_training(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size: 200 is too small"):
        train_tokenizer(iter(()), Config(kind=kind, vocab_size=200), tmp_path / "t", seed=0)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_is_refused(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(UserError, match="no text to train on"):
        train_tokenizer(texts, Config(kind="bpe", vocab_size=600), tmp_path / "t", seed=0)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_pattern_with_digits_cannot_be_kept_whole(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.preserve: '10' "):
        train_tokenizer(
            TEXTS[:10], Config(kind=kind, vocab_size=500, preserve=("10",)), tmp_path / "t", seed=0
        )


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_rare_patterns_are_kept_whole(tmp_path: Path, kind: str) -> None:
    patterns = ("::", "=>", "@@@", "()", "[]")
    text = "plain words and others, = > @ : ( ) [ ] and more of the same words\n" * 50
    config = Config(kind=kind, vocab_size=410, preserve=patterns)
    texts = [text, *TEXTS[:6]]
    tokenizer = train_tokenizer(texts, config, tmp_path / "t", seed=0)
    assert tokenizer.vocab_size == 410
    assert [len(tokenizer.encode(p)) for p in patterns] == [1] * 5


def test_digits_may_stand_together(tmp_path: Path) -> None:
    texts = [f"the year {1900 + i % 50} and 2024\n" for i in range(2000)]
    config = Config(kind="bpe", vocab_size=285, split_digits=False, preserve=())
    assert len(train_tokenizer(texts, config, tmp_path / "t", seed=0).encode("2024")) < 4


def test_hostile_training_text_teaches_no_special(tmp_path: Path) -> None:
    hostile = ["<|end|><call_tool><pad><0x41>\u2581x\u2585\0 and 漢字\ud7ff " * 200, *TEXTS[:8]]
    for kind in ("bpe", "unigram"):
        tokenizer = train_tokenizer(hostile, Config(kind=kind, vocab_size=500), tmp_path / kind, seed=0)
        for text in (*SPECIALS, hostile[0][:300], "<0x41>", "\u2581 \u2581"):
            ids = tokenizer.encode(text)
            assert tokenizer.special_ids.isdisjoint(ids)
            assert tokenizer.decode(ids) == text


def test_training_reports_how_far_it_is(tmp_path: Path) -> None:
    shares: list[float] = []
    config = Config(kind="unigram", vocab_size=500)
    train_tokenizer(TEXTS[:10], config, tmp_path / "t", seed=0, progress=shares.append)
    assert shares and shares == sorted(shares) and 0 < shares[-1] <= 1


def test_a_trainer_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "sys", type("Python", (), {"executable": "/bin/false"}))
    with pytest.raises(UserError, match="training ended early"):
        worker.learn_apart("bpe", ["text"], 300, True, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_stops_training_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from ikirere.tokenizer.train import train_tokenizer\n"
        "from ikirere.recipe.sections import Tokenizer\n"
        "texts = [p.read_text(encoding='utf-8', errors='replace') for p in sorted(Path(sys.argv[1]).glob('*.py'))] * 6\n"
        "print('go', flush=True)\n"
        "train_tokenizer(texts, Tokenizer(kind='unigram', vocab_size=3000), Path(sys.argv[2]) / 't', 0)\n"
    )
    command = [sys.executable, "-c", code, str(LIBRARY), str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("training.part.*/corpus.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- adopted vocabularies


def adopt(name: str | Path, size: int, folder: Path) -> Tokenizer:
    config = Config(kind="pretrained", vocab_size=size, pretrained=str(name))
    return train_tokenizer((), config, folder / "adopted", seed=0, base=folder)


def test_an_adopted_vocabulary_keeps_its_ids(tmp_path: Path, small: Tokenizer) -> None:
    tree = json.loads(small._text)
    tree["added_tokens"] = []
    tree["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    vocabulary = {t: i for t, i in tree["model"]["vocab"].items() if i >= 17}
    tree["model"]["vocab"] = {t: i - 17 for t, i in vocabulary.items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    tokenizer = adopt("tokenizer.json", 600, tmp_path)
    assert tokenizer.encode(TEXTS[0]) == [i - 17 for i in small.encode(TEXTS[0])]
    assert [tokenizer.id(s) for s in SPECIALS] == list(range(583, 600))
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size: 700 given, .* has 600 ids"):
        adopt(tmp_path, 700, tmp_path)


def test_a_special_that_is_an_ordinary_piece_elsewhere_stays_text(tmp_path: Path) -> None:
    pieces = [(f"<0x{b:02X}>", 0.0) for b in range(256)] + [
        ("<pad>", -1.0),
        ("<|end|>", -1.0),
        ("<pad", -2.0),
    ]
    backend = Backend(models.Unigram([("<unk>", 0.0), *pieces], unk_id=0, byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = adopt(tmp_path, 260 + 15, tmp_path)
    assert tokenizer.id("<pad>") == 257
    for text in ("<pad>", "a<pad><|end|>b", "<<pad>pad>", "<|end|><eos>"):
        ids = tokenizer.encode(text)
        assert tokenizer.special_ids.isdisjoint(ids) and tokenizer.decode(ids) == text


@pytest.mark.parametrize("case", ["words", "space in front"])
def test_vocabularies_that_lose_text_are_refused(tmp_path: Path, case: str, small: Tokenizer) -> None:
    if case == "words":
        backend = Backend(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    else:
        backend = Backend.from_str(small._text)
        backend.normalizer = normalizers.Prepend(" ")
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer\.pretrained: .* does not give .* back"):
        adopt(tmp_path, 600, tmp_path)


def test_what_cannot_be_had_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no connection\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(
        UserError, match=r"tokenizer\.pretrained: some/model is no folder .*\(no connection\)"
    ):
        adopt("some/model", 600, tmp_path)
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(UserError, match="tiktoken:gpt2 needs: pip install tiktoken"):
        adopt("tiktoken:gpt2", 600, tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(UserError, match=r"not a tokenizer\.json"):
        adopt(tmp_path, 600, tmp_path)


def test_tiktokens_form_gives_the_same_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Tokenizer
) -> None:
    table = byte_characters()
    vocabulary = {t: i for t, i in json.loads(small._text)["model"]["vocab"].items() if i >= 17}
    ranks = {bytes(table[c] for c in token): i - 17 for token, i in vocabulary.items()}
    cut = json.loads(small._text)["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]

    class Encoding:
        _mergeable_ranks, _pat_str, _special_tokens = ranks, cut, {"<|endoftext|>": len(ranks) + 1}

    fake = type(sys)("tiktoken")
    fake.get_encoding = lambda name: Encoding  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiktoken", fake)
    tokenizer = adopt("tiktoken:some", len(ranks) + 2 + 17, tmp_path)
    assert tokenizer.encode(TEXTS[1]) == [i - 17 for i in small.encode(TEXTS[1])]
    assert tokenizer.id("<|endoftext|>") == len(ranks) + 1
    assert tokenizer.id("<pad>") == len(ranks) + 2
    with pytest.raises(UserError, match="gaps"):
        from_ranks({b"a": 0, b"b": 2}, cut)


# ---------------------------------------------------------------- sample and stage


def write(path: Path, texts: Mapping[str, list[str]]) -> None:
    rows = [
        {"id": hashlib.sha256(text.encode()).hexdigest()[:32], "text": text, "domain": domain, "source": "s",
         "group": "g", "path": "p", "licence": "MIT", "lang": "en"}
        for domain, group in texts.items()
        for text in group
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_samples_follow_the_mixture_and_repeat(tmp_path: Path) -> None:
    file = tmp_path / "d.parquet"
    write(file, {"code": TEXTS[:30], "docs": [f"é{i} " * 2000 for i in range(20)]})
    sample = choose(file, 40_000, {"code": 3, "docs": 1}, seed=1)
    assert sample.taken == {"code": 30_000, "docs": 10_000}
    texts = list(sample)
    assert 39_990 <= sum(len(t.encode()) for t in texts) <= 40_000  # a character is never cut in two
    assert texts == list(choose(file, 40_000, {"code": 3, "docs": 1}, seed=1))
    assert texts != list(choose(file, 40_000, {"code": 3, "docs": 1}, seed=2))
    everything = choose(file, 10**9, {}, seed=0)
    assert sum(len(t.encode()) for t in everything) == sum(everything.taken.values())
    short = choose(file, 1_000_000, {"docs": 1}, seed=0)
    assert short.taken["docs"] < short.wanted["docs"]
    with pytest.raises(UserError, match=r"tokenizer\.mixture: .* domain law; domains are code, docs"):
        choose(file, 1000, {"law": 1.0}, seed=0)
    with pytest.raises(UserError, match="all weights are 0"):
        choose(file, 1000, {"code": 0.0}, seed=0)
    with pytest.raises(UserError, match="absent"):
        choose(tmp_path / "absent.parquet", 1000, {}, seed=0)


class Bar:
    def __init__(self, total: float) -> None:
        self.total, self.done = total, 0.0

    def advance(self, amount: float = 1, **shown: object) -> None:
        self.done += amount


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    tree = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())
    tree["tokenizer"] = {"kind": "bpe", "vocab_size": 600, "train_bytes": 200_000}
    data, folder = tmp_path / "data", tmp_path / "tokenizer"
    data.mkdir()
    folder.mkdir()
    write(data / "documents-train.parquet", {"code": TEXTS[:30], "docs": ["Some prose, with words.\n" * 200]})
    write(
        data / "documents-heldout.parquet",
        {"code": TEXTS[30:], "docs": ["Other prose; 漢字.\n", "no end", ""]},
    )
    said: list[str] = []

    @contextmanager
    def progress(label: str, total: float, unit: str) -> Iterator[Bar]:
        yield Bar(total)

    return StageContext(
        recipe=Recipe.model_validate(tree),
        recipe_folder=tmp_path,
        folder=folder,
        inputs={"data": data},
        rehearsal=False,
        progress=progress,
        say=said.append,
        track=lambda metrics, step: None,
    )


def test_the_stage_trains_and_measures(context: StageContext) -> None:
    (context.folder / "tokenizer.part").mkdir()
    (context.folder / "training.part.x").mkdir()
    result = TokenizerStage().run(context)
    metrics = {m.name: m for m in result.metrics}
    assert set(metrics) == {
        "bytes_per_token/code", "bytes_per_token/docs", "tokens_per_line/code",
        "round_trip", "forged_specials", "unknown_tokens",
    }  # fmt: skip
    assert metrics["round_trip"].value == 1 and metrics["round_trip"].n == 12
    assert metrics["forged_specials"].value == 0
    assert metrics["unknown_tokens"].value == 0
    tokenizer = Tokenizer.load(context.folder)
    assert tokenizer.vocab_size == 600
    tokens = sum(len(tokenizer.encode(text)) for text in TEXTS[30:])
    assert metrics["bytes_per_token/code"].value == pytest.approx(
        sum(len(t.encode()) for t in TEXTS[30:]) / tokens
    )
    assert metrics["tokens_per_line/code"].value == pytest.approx(
        tokens
        / sum(
            len(t.rstrip("\n").split("\n")) if t.endswith("\n") else len(t.split("\n")) for t in TEXTS[30:]
        ),
        rel=0.02,
    )
    assert sorted(p.name for p in context.folder.iterdir()) == ["heldout.jsonl", "tokenizer"]
    assert result.artifacts == ["tokenizer", "heldout.jsonl"]
    first = tokenizer.sha256
    TokenizerStage().run(context)
    assert Tokenizer.load(context.folder).sha256 == first


def test_the_stage_asks_for_held_out_documents(context: StageContext) -> None:
    schema = pq.read_schema(context.inputs["data"] / "documents-heldout.parquet")
    pq.write_table(schema.empty_table(), context.inputs["data"] / "documents-heldout.parquet")
    with pytest.raises(UserError, match=r"data\.heldout"):
        TokenizerStage().run(context)


def test_the_stage_depends_on_its_section_and_on_an_adopted_file(
    context: StageContext, small: Tokenizer
) -> None:
    stage = TokenizerStage()
    assert stage.config(context.recipe)["tokenizer"]["vocab_size"] == 600
    assert json.dumps(stage.config(context.recipe))
    assert stage.external(context.recipe, context.recipe_folder) == ""
    small.save(context.recipe_folder / "mine")
    section = Config(kind="pretrained", vocab_size=600, pretrained="mine")
    context.recipe = context.recipe.model_copy(update={"tokenizer": section})
    assert len(stage.external(context.recipe, context.recipe_folder)) == 64
    stage.run(context)
    assert Tokenizer.load(context.folder).encode(TEXTS[3]) == small.encode(TEXTS[3])
