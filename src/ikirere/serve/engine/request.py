"""What goes into the engine and what comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ikirere.errors import UserError
from ikirere.serve.engine.sampling import TokenLogprob

FinishReason = Literal["stop", "length", "tool_calls", "abort"]
EventKind = Literal["scratchpad", "text", "tool_call", "tool_result", "done"]


class ContextTooLong(UserError):
    """The prompt fills the context, so that nothing can be generated."""


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it.

    prompt: token ids, ending where the model is to write (for chat: after `<|assistant|>`).
    max_new_tokens: bound on sampled tokens; tool results and other forced tokens are not counted.
    stop: strings that end the visible text; they are not part of it.
    execute_tools: tools that the engine runs itself. A call to any other ends the request.
    max_tool_calls: after so many calls `<call_tool>` has no probability any more; 0 forbids calls.
    chat: read the ids as an assistant's turn (scratchpad, text, calls, `<|end|>`); False: plain text.
    start: ids with which the assistant's turn is made to begin.
    logprobs: None, or the number of alternatives wanted beside each sampled token's log-probability.
    prompt_logprobs: also score the prompt (same number of alternatives).
    ignore_end: never end by `<|end|>` or `<eos>`.
    """

    prompt: list[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    execute_tools: frozenset[str] = frozenset()
    max_tool_calls: int = 4
    chat: bool = True
    start: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_end: bool = False

    def check(self, max_model_len: int, vocabulary: int) -> None:
        """Raises UserError where a model of this context length and vocabulary cannot serve the request."""
        if not self.prompt:
            raise UserError("the prompt is empty; give at least one token")
        if len(self.prompt) + len(self.start) >= max_model_len:
            raise ContextTooLong(
                f"the prompt is {len(self.prompt)} tokens, the context holds {max_model_len} with the answer; "
                f"shorten the prompt to at most {max_model_len - 1 - len(self.start)}"
            )
        if not all(0 <= token < vocabulary for token in (*self.prompt, *self.start, *self.logit_bias)):
            raise UserError(f"a token id is outside the vocabulary; ids are 0 to {vocabulary - 1}")
        if self.max_new_tokens < 0 or (self.max_new_tokens == 0 and not self.prompt_logprobs):
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; give at least 1")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise UserError(
                f"temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k}: "
                "accepted are a finite temperature >= 0, 0 < top_p <= 1, top_k >= 0"
            )
        if any(not text for text in self.stop):
            raise UserError("a stop string is empty; leave it out")


@dataclass(frozen=True)
class Scored:
    """A token's log-probability and the part of the output to which the token belongs."""

    part: Literal["text", "scratchpad", "call", "special"]
    score: TokenLogprob


@dataclass(frozen=True)
class Event:
    """A piece of the output as it comes.

    kind "scratchpad" and "text": `text` is the next piece, whole characters only.
    "tool_call": data {"name", "arguments"}, or {"error"} where the call cannot be read.
    "tool_result": `text` is the result, data {"name", "ok"}.
    "done": data is the `Completion`.
    """

    kind: EventKind
    text: str = ""
    data: Any = None


@dataclass
class Completion:
    """The result of a request.

    ids: everything after the prompt, forced ids (tool results, `start`) included.
    text: the visible text of all assistant turns, the concatenation of the "text" events.
    messages: assistant and tool messages in order, in the form that `chat_format.render` takes.
    tool_calls: calls made, run or not, readable or not.
    sampled: number of tokens that the model chose.
    """

    ids: list[int]
    text: str
    finish_reason: FinishReason
    messages: list[dict[str, Any]]
    tool_calls: int
    logprobs: list[Scored] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    prompt_tokens: int = 0
    sampled: int = 0
