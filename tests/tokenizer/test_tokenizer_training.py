"""Training, adopting, sampling and the stage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from ikirere.errors import UserError
from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer import bpe, worker
from ikirere.tokenizer.base import Tokenizer, byte_characters
from ikirere.tokenizer.pretrained import from_ranks
from ikirere.tokenizer.specials import SPECIALS
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
        worker.learn_in_subprocess(bpe.learn, ["text"], 300, True, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("how", "wait"),
    [(signal.SIGINT, 1), (signal.SIGKILL, 1), (signal.SIGKILL, 0)],  # 0: before the trainer is up
)
def test_a_stopped_run_leaves_no_trainer_behind(tmp_path: Path, how: signal.Signals, wait: float) -> None:
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
    while not (children := psutil.Process(process.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) == 1
    time.sleep(wait)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # what Ctrl-C in a terminal does
    else:
        process.kill()
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert not psutil.wait_procs(children, timeout=10)[1]
    if how == signal.SIGINT:
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
