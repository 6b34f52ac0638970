"""Rows with blanks: answers of every puzzle form, spans of text, mixture, determinism."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch

from ikirere.corpus.readers.arc import task_text
from ikirere.corpus.readers.puzzles.source import PuzzleSource
from ikirere.errors import UserError
from ikirere.recipe.data import Puzzles
from ikirere.tokenizer.specials import PAD, SCRATCHPAD
from ikirere.tokens.infilling import InfillDataset, SpanMasker, random_spans
from ikirere.tokens.loader import LoaderPhase
from ikirere.tokens.puzzle_answers import find_answer
from ikirere.tokens.shards import Shard

PAD_ID, EOS, BLANK, FIRST = 0, 2, 7, 17


class Letters:
    """A tokenizer with an id per byte, and one more for a pair of bytes that lies across line ends."""

    eos = EOS

    def id(self, special: str) -> int:
        return {PAD: PAD_ID, SCRATCHPAD: BLANK}[special]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(
            b":\n" if i == FIRST + 256 else bytes([i - FIRST]) if i >= FIRST else b"" for i in ids
        )

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for byte in text.encode():
            if byte == 10 and ids and ids[-1] == FIRST + 58:
                ids[-1] = FIRST + 256
            else:
                ids.append(FIRST + byte)
        return ids


TOKENS = Letters()


def document(text: str) -> np.ndarray:
    return np.array([*TOKENS.encode(text), EOS], dtype=np.uint16)


def decoded(ids: torch.Tensor) -> str:
    return TOKENS.decode_bytes(ids.tolist()).decode()


def puzzles(generator: str, number: int) -> list[str]:
    source = PuzzleSource(
        Puzzles(kind="puzzles", name="p", domain="d", generators=(generator,), seed=4, count=number), None
    )
    return [d.text for d in source.documents(lambda p, r: None, lambda line: None)]


# What the answer of each form begins with, and words that would give it away.
FORMS = {
    "grid_transforms": ("output:\n", "\nafter "),
    "program_traces": ("output:\n", "trace:"),
    "sudoku": ("solution:\n", "filling the cell"),
    "maze": ("shortest path:\n", " steps"),
    "graph": (":\n", " by "),
}


@pytest.mark.parametrize("generator", sorted(FORMS))
def test_the_answer_of_every_generator_is_found_and_not_given_away(generator: str) -> None:
    before, telling = FORMS[generator]
    blanks = SpanMasker(TOKENS)
    for text in puzzles(generator, 6):
        row = blanks.answer(document(text), 4096)
        assert row is not None
        used = row.labels != -100
        first = int(used.nonzero()[0])
        shown, answer = decoded(row.tokens[:first]), decoded(row.labels[used])
        assert text.endswith(answer) and answer
        assert shown.endswith(before)
        last_question = shown[shown.rfind("\ninput:") :] if generator == "grid_transforms" else shown
        assert telling not in last_question
        assert (row.tokens[first:] == BLANK).all()
        assert row.labels[used][-1] == EOS
        assert row.document_ids is None
        assert answer.strip() not in shown or len(answer.strip()) < 8
        if generator == "sudoku":
            assert answer.count("\n") == 9
        if generator == "graph":
            assert answer.startswith("way: ") or "from " in answer


def test_worked_steps_of_the_last_pair_only_are_left_out() -> None:
    one = "program: a; b\n\ninput:\n12\nafter a:\n21\noutput:\n11\n"
    found = find_answer(one)
    assert found is not None
    assert one[found.start :] == "11\n"
    assert [one[a:b] for a, b in found.left_out] == ["after a:\n21\n"]
    two = one + "\ninput:\n34\noutput:\n43\n"
    found = find_answer(two)
    assert found is not None and not found.left_out
    assert two[found.start :] == "43\n"


def test_long_arc_tasks_lose_whole_demonstrations() -> None:
    pair = {"input": [[1, 2], [3, 4]], "output": [[4, 3], [2, 1]]}
    text = task_text([pair] * 5, [{"input": [[5, 6], [7, 8]], "output": [[8, 7], [6, 5]]}])
    whole = document(text)
    blanks = SpanMasker(TOKENS)
    for length in (len(whole), 80, 40):
        row = blanks.answer(whole, length)
        assert row is not None
        used = row.labels != -100
        shown = decoded(row.tokens[: int(used.nonzero()[0])])
        assert shown.startswith("input:\n")
        assert shown.endswith("input:\n56\n78\noutput:\n")
        assert decoded(row.labels[used]) == "87\n65\n"
    assert blanks.answer(whole, 25) is None  # the last question and its answer do not fit


def test_ordinary_text_has_no_answer() -> None:
    assert find_answer("Some words.\noutput:\nmore words\n") is None
    assert find_answer("input:\n12\noutput:\n") is None
    assert find_answer("") is None


def test_spans_blank_as_much_as_they_should() -> None:
    shares, runs = [], []
    for seed in range(300):
        chosen = random_spans(200, np.random.default_rng(seed))
        shares.append(chosen.mean())
        edges = np.diff(np.concatenate([[0], chosen.astype(int), [0]]))
        runs += (np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)).tolist()
    assert min(shares) >= 0.145 and max(shares) <= 0.305
    assert np.mean(shares) == pytest.approx(0.225, abs=0.01)
    assert np.mean(runs) == pytest.approx(3, abs=0.15)
    assert [int(random_spans(n, np.random.default_rng(0)).sum()) for n in (1, 2, 3)] == [1, 1, 1]


def test_a_text_row_is_its_window_with_gaps_and_padding() -> None:
    window = document("The quick brown fox jumps over the lazy dog.")
    row = SpanMasker(TOKENS).spans(window, 64, np.random.default_rng(0))
    used = row.labels != -100
    assert (row.tokens[used] == BLANK).all()
    restored = torch.where(used, row.labels, row.tokens)
    assert restored[: len(window)].tolist() == window.tolist()
    assert (restored[len(window) :] == PAD_ID).all()
    assert row.document_ids is not None
    assert row.document_ids.tolist() == [0] * len(window) + [-1] * (64 - len(window))


def shards() -> dict[str, Shard]:
    texts = [f"text {i}: " + "words and words " * (i + 1) for i in range(7)]
    mazes = puzzles("sudoku", 5)
    return {
        name: Shard.from_documents([document(t).tolist() for t in some])
        for name, some in (("web", texts), ("synthesis", mazes))
    }


PHASES = [
    LoaderPhase(4, 48, 6, {"web": 0.75, "synthesis": 0.25}),
    LoaderPhase(4, 512, 6, {"web": 0.5, "synthesis": 0.5}),
]


def test_rows_are_a_function_of_seed_and_number_and_mixed_by_weight() -> None:
    rows, again = (InfillDataset(shards(), PHASES, 5, TOKENS, {"synthesis"}) for _ in range(2))
    other = InfillDataset(shards(), PHASES, 6, TOKENS, {"synthesis"})
    assert rows.fingerprint(2) == again.fingerprint(2) != other.fingerprint(2)
    later = InfillDataset(shards(), [PHASES[0], PHASES[0]], 5, TOKENS, {"synthesis"})
    assert rows.fingerprint(1) == later.fingerprint(1) and rows.fingerprint(2) != later.fingerprint(2)
    firsts = [rows.example(1, n) for n in range(40)]
    for n in (31, 2, 17):  # in any order
        example = again.example(1, n)
        assert torch.equal(example.tokens, firsts[n].tokens)
        assert torch.equal(example.labels, firsts[n].labels)
    assert any(not torch.equal(other.example(1, n).tokens, firsts[n].tokens) for n in range(4))
    puzzle = [decoded(e.tokens).startswith("sudoku with") for e in firsts]
    assert sum(puzzle) == 20
    assert all((e.labels != -100).any() for e in firsts)
    assert {e.tokens.shape[0] for e in firsts} == {512}
    short = [rows.example(0, n) for n in range(40)]  # no sudoku fits into 48 positions: read as text
    assert {e.tokens.shape[0] for e in short} == {48}


def test_an_epoch_shows_every_window_once() -> None:
    held = shards()
    rows = InfillDataset(held, [LoaderPhase(4, 48, 6, {"web": 1.0})], 5, TOKENS)
    windows = sum(-(-len(held["web"].tokens(i)) // 48) for i in range(7))
    whole = sorted(
        torch.where(e.labels != -100, e.labels, e.tokens).tolist()
        for e in (rows.example(0, n) for n in range(windows))
    )
    expected = []
    for i in range(7):
        ids = held["web"].tokens(i).tolist()
        expected += [(ids[a : a + 48] + [PAD_ID] * 48)[:48] for a in range(0, len(ids), 48)]
    assert whole == sorted(expected)
    seconds = [rows.example(0, windows + n).tokens.tolist() for n in range(windows)]
    assert seconds != [rows.example(0, n).tokens.tolist() for n in range(windows)]


def test_a_mixture_without_documents_is_refused() -> None:
    with pytest.raises(UserError, match=r"mixture\.code: no training tokens; domains are synthesis, web"):
        InfillDataset(shards(), [LoaderPhase(1, 8, 1, {"code": 1.0})], 0, TOKENS)
    with pytest.raises(UserError, match="no domain has a weight above 0"):
        InfillDataset(shards(), [LoaderPhase(1, 8, 1, {"web": 0.0})], 0, TOKENS)
