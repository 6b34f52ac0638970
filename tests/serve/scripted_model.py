"""What the tests of serve and eval share: a small tokenizer, a small model, and a model that follows a script.

`python scripted_model.py PORT [DELAY]` serves the scripted model, DELAY seconds per step, without a run folder;
`python scripted_model.py chat [DELAY]` chats with it.
"""

from __future__ import annotations

import inspect
import re
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

import ikirere.serve.engine.engine
import ikirere.serve.engine.sequence
import ikirere.serve.engine.turn_parser
from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.recipe.sections import Tokenizer as TokenizerSection
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.specials import SPECIALS
from ikirere.tokenizer.train import train_tokenizer

torch.set_num_threads(1)  # the models here are too small to share

SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")

CALL = '<call_tool>{"name": "%s", "arguments": {"%s":"%s"}}</call_tool>'
SCRIPT: dict[str, list[str]] = {
    "What is 4821 * 37?": [
        "<scratchpad>4821 * 37 needs the calculator.</scratchpad>"
        + CALL % ("calculator", "expression", "4821 * 37"),
        "It is {result}.",
    ],
    "hello": ["Hello! How can I help?"],
    "both": [
        CALL % ("calculator", "expression", "1 + 1") + CALL % ("calculator", "expression", "2 + 3"),
        "Two and {result}.",
    ],
    "broken": ["<call_tool>not json</call_tool>", "Sorry: {result}"],
    "divide": [CALL % ("calculator", "expression", "1 / 0"), "I cannot: {result}"],
    "unknown tool": [CALL % ("get_weather", "city", "Kigali")],
    "python": [CALL % ("python_exec", "code", "print(len('sky'))"), "{result}"],
    "greedy for tools": [CALL % ("calculator", "expression", "1 + 1")] * 50,
    "count": [" ".join(str(number) for number in range(300))],
    "rwanda": ["ikirere ni cyiza ☀ é"],
}


@lru_cache
def small_tokenizer() -> Tokenizer:
    """A BPE of 600 ids, trained on this package's own source."""
    modules = (ikirere.serve.engine.engine, ikirere.serve.engine.sequence, ikirere.serve.engine.turn_parser)
    texts = [inspect.getsource(module) for module in modules]
    with tempfile.TemporaryDirectory() as folder:
        section = TokenizerSection(kind="bpe", vocab_size=600)
        return train_tokenizer(texts, section, Path(folder) / "tokenizer", seed=0)


def small_model(seed: int = 0, context: int = 256, vocabulary: int = 600) -> Decoder:
    """A random decoder of two layers whose logits are far enough apart to have one greedy continuation."""
    model = Decoder(ModelConfig(vocabulary, 32, 2, 4, 2, 64, context, qk_norm=True, initializer_range=0.3))
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model.eval()


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of text in which special tokens are spelled out."""
    ids: list[int] = []
    for part in SPECIAL.split(text):
        ids += [tokenizer.id(part)] if part in SPECIALS else tokenizer.encode(part)
    return ids


class Scripted(Decoder):
    """Follows SCRIPT: its logits point at the next id of the turn that belongs to the last user message.

    What it has read lies in the real cache, so that rows that are moved about take their history with them.
    """

    def __init__(self, tokenizer: Tokenizer, context: int = 1024, delay: float = 0.0) -> None:
        super().__init__(ModelConfig(tokenizer.vocab_size, 4, 1, 1, 1, 4, context))
        self.tokenizer = tokenizer
        self.delay = delay
        self.eye = torch.eye(tokenizer.vocab_size) * 30.0

    @property
    def output_weight(self) -> Tensor:  # type: ignore[override]
        return self.eye

    def hidden(  # type: ignore[override]
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        rows: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        assert cache is not None and rows is not None
        time.sleep(self.delay)
        step = cache.plan(tuple(tokens.shape), rows, counts)
        out = torch.zeros(*tokens.shape, self.config.vocab_size)
        for number, row in enumerate(rows.tolist()):
            count = tokens.shape[1] if counts is None else int(counts[number])
            start = int(cache.lengths[row])
            cache.keys[0][row, 0, start : start + count, 0] = tokens[number, :count].float()
            history = cache.keys[0][row, 0, : start + count, 0].long().tolist()
            out[number, count - 1, self.follow(history)] = 1.0
        cache.advance(step)
        return out

    def follow(self, history: list[int]) -> int:
        """The next id after everything that a row has read."""
        tokenizer = self.tokenizer
        begun = len(history) - 1 - history[::-1].index(tokenizer.id("<|assistant|>"))
        turn, written = self.turn(history[:begun]), history[begun + 1 :]
        if turn[: len(written)] != written:  # it was forced elsewhere: it ends there
            return tokenizer.end
        return turn[len(written)] if len(written) < len(turn) else tokenizer.end

    def turn(self, context: list[int]) -> list[int]:
        tokenizer = self.tokenizer
        asked = len(context) - 1 - context[::-1].index(tokenizer.id("<|user|>"))
        question = tokenizer.decode(context[asked : context.index(tokenizer.end, asked)])
        since = context[asked:]
        number = sum(1 for i, token in enumerate(since) if token == tokenizer.end and i) - 1
        turns = SCRIPT.get(question, [f"You said: {question}"])
        text = turns[min(number, len(turns) - 1)]
        opened = [i for i, token in enumerate(since) if token == tokenizer.id("<tool_result>")]
        if opened:
            closed = since.index(tokenizer.id("</tool_result>"), opened[-1])
            text = text.replace("{result}", tokenizer.decode(since[opened[-1] : closed]))
        return ids_of(tokenizer, text)


def main(port: int, delay: float) -> None:
    import uvicorn

    from ikirere.serve.http.api import create_app, listen

    tokenizer = small_tokenizer()
    sock = listen("127.0.0.1", port)
    app = create_app(Scripted(tokenizer, delay=delay), tokenizer, "scripted", max_num_seqs=4)
    print(f"http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).run(sockets=[sock])


def main_chat(delay: float) -> None:
    import ikirere.serve.terminal as terminal

    model = Scripted(small_tokenizer(), delay=delay)
    terminal.load_run_model = lambda path: (model, model.tokenizer, Path("scripted"))  # type: ignore[assignment]
    terminal.chat("scripted")


if __name__ == "__main__":
    pause = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    if sys.argv[1] == "chat":
        main_chat(pause)
    else:
        main(int(sys.argv[1]), pause)
