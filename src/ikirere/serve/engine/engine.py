"""The one engine: many requests of different lengths through one model, step by step.

Each request holds a row of the KV cache. A step feeds one batch of prompts (or tool results), then one id to
every row that awaits one (continuous batching: Yu et al. 2022, Orca, section 4). Rows that decode are kept
side by side at the front of the cache, so that a step reads them without gathering.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import torch
import torch.nn.functional as F
from torch import Tensor

from ikirere.errors import UserError
from ikirere.model.cache import KVCache
from ikirere.model.decoder import Decoder
from ikirere.serve.engine.request import Completion, Event, Request
from ikirere.serve.engine.sampling import sample, token_logprobs
from ikirere.serve.engine.sequence import Sequence
from ikirere.tokenizer.assistant_parser import ParsedCall
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.chat_format import ChatTokens
from ikirere.tools import registry
from ikirere.tools.result import ToolResult

PREFILL_TOKENS = 1024  # per step, padding included: bounds how long a prompt delays the rows that decode
TOOL_PATIENCE = 0.005  # seconds: a tool that returns within this keeps its row in the batch
TOOL_POLL = 0.05  # seconds that a step waits where every request awaits a tool


class Engine:
    """Continuous batching for one model.

    max_num_seqs: requests decoded together. max_model_len: longest prompt + answer in tokens (default and bound: the
    model's `max_position_embeddings`). The cache is kept in the weights' dtype on the weights' device.
    Not thread-safe: one thread calls it.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        max_num_seqs: int = 8,
        max_model_len: int | None = None,
        device: torch.device | str | None = None,
        tool_threads: int = 2,
    ) -> None:
        limit = model.config.max_position_embeddings
        if max_num_seqs < 1 or (max_model_len is not None and not 2 <= max_model_len <= limit):
            raise UserError(
                f"max_num_seqs {max_num_seqs}, max_model_len {max_model_len}: accepted are max_num_seqs >= 1, max_model_len 2 to {limit}"
            )
        self.model = model.to(device).eval() if device is not None else model.eval()
        self.tokenizer = tokenizer
        self.chat_tokens = ChatTokens.of(tokenizer)
        self.max_num_seqs = max_num_seqs
        self.max_model_len = max_model_len or limit
        # One row more than the sequences, through which two rows are swapped.
        self.cache = KVCache(
            model.config,
            max_num_seqs + 1,
            self.max_model_len,
            dtype=self.model.dtype,
            device=self.model.device,
        )
        self.rows: list[Sequence | None] = [None] * max_num_seqs
        self.waiting: deque[Sequence] = deque()
        self._submitted = 0
        self._tools: dict[Sequence, list[Future[ToolResult]]] = {}
        self._threads = ThreadPoolExecutor(tool_threads, thread_name_prefix="tool")

    # ------------------------------------------------------------ requests

    @property
    def busy(self) -> bool:
        return bool(self.waiting) or any(self.rows)

    def submit(self, request: Request, on_event: Callable[[Event], None] | None = None) -> Sequence:
        """Queue a request. Its events go to `on_event` as they come, the last being "done".

        Raises UserError where the request cannot be met.
        """
        request.check(self.max_model_len, self.tokenizer.vocab_size)
        sequence = Sequence(request, self.tokenizer, self.chat_tokens, self.max_model_len, on_event)
        sequence.order = self._submitted
        self._submitted += 1
        self.waiting.append(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """End a request now; its completion has the finish reason "abort" and keeps what was written."""
        sequence.abort()
        for future in self._tools.pop(sequence, ()):
            future.cancel()
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        self._free(sequence)

    @torch.inference_mode()
    def step(self) -> None:
        """One prefill batch, one decode step. Waits, shortly, only where all requests await tools."""
        self._collect_tools()
        self._admit()
        self._prefill()
        self._decode()

    def generate(
        self, requests: list[Request], on_done: Callable[[int, Completion], None] | None = None
    ) -> list[Completion]:
        """Run requests to their ends; completions in the order given. `on_done(index, completion)` as each ends.

        Prompts of like length are prefilled together. A completion depends neither on
        the order nor on the other requests in the batch.
        """
        finished: dict[int, Completion] = {}

        def sink(index: int) -> Callable[[Event], None]:
            def on_event(event: Event) -> None:
                if event.kind == "done":
                    finished[index] = event.data
                    if on_done is not None:
                        on_done(index, event.data)

            return on_event

        by_length = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt))
        handles: list[Sequence] = []
        try:
            for index in by_length:
                handles.append(self.submit(requests[index], sink(index)))
            while len(finished) < len(requests):
                self.step()
        finally:
            for handle in handles:
                if not handle.done:
                    self.abort(handle)
        return [finished[index] for index in range(len(requests))]

    def stream(self, request: Request) -> Iterator[Event]:
        """Events of one request as they come, "done" last. Closing the iterator aborts the request."""
        events: deque[Event] = deque()
        sequence = self.submit(request, events.append)
        try:
            while True:
                while events:
                    event = events.popleft()
                    yield event
                    if event.kind == "done":
                        return
                self.step()
        finally:
            if not sequence.done:
                self.abort(sequence)

    def close(self) -> None:
        """Abort everything and end the tool threads."""
        for sequence in [*self.waiting, *(row for row in self.rows if row is not None)]:
            self.abort(sequence)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ rows

    def _admit(self) -> None:
        for row, occupant in enumerate(self.rows):
            if not self.waiting:
                return
            if occupant is None:
                sequence = self.waiting.popleft()
                sequence.row = row
                self.rows[row] = sequence
                self.cache.reset(row)

    def _free(self, sequence: Sequence) -> None:
        if sequence.row >= 0:
            self.rows[sequence.row] = None
            sequence.row = -1

    def _swap(self, first: int, second: int) -> None:
        a, b = self.rows[first], self.rows[second]
        if a is not None:
            self.cache.copy(first, self.max_num_seqs)
        if b is not None:
            self.cache.copy(second, first)
            b.row = first
        if a is not None:
            self.cache.copy(self.max_num_seqs, second)
            a.row = second
        self.rows[first], self.rows[second] = b, a

    def _compact(self) -> list[Sequence]:
        """Bring the rows that decode to the front; returns them in row order."""
        count = sum(1 for sequence in self.rows if sequence is not None and sequence.ready)
        ready = [sequence is not None and sequence.ready for sequence in self.rows]
        holes = [row for row in range(count) if not ready[row]]
        movers = [row for row in range(count, self.max_num_seqs) if ready[row]]
        for hole, mover in zip(holes, movers):
            self._swap(hole, mover)
        return [sequence for sequence in self.rows[:count] if sequence is not None]

    # ------------------------------------------------------------ prefill and decode

    def _prefill(self) -> None:
        group = self._prefill_group()
        if not group:
            return
        counts = [min(len(sequence.pending), PREFILL_TOKENS) for sequence in group]
        width = max(counts)
        tokens = torch.tensor(
            [sequence.pending[:count] + [0] * (width - count) for sequence, count in zip(group, counts)]
        )
        hidden = self._hidden(tokens, group, None if min(counts) == width else torch.tensor(counts))
        through: list[int] = []
        for number, (sequence, count) in enumerate(zip(group, counts)):
            if sequence.request.prompt_logprobs:
                self._score_prompt(sequence, hidden[number, :count])
            sequence.advance(count)
            if not sequence.pending:
                through.append(number)
        if through:
            last = hidden[through, [counts[number] - 1 for number in through]]
            self._choose([group[number] for number in through], last)

    def _prefill_group(self) -> list[Sequence]:
        """The oldest row to prefill and others of like length, within the budget."""
        candidates = [sequence for sequence in self.rows if sequence is not None and sequence.prefilling]
        if not candidates:
            return []
        oldest = min(candidates, key=lambda sequence: sequence.order)
        length = len(oldest.pending)
        candidates.sort(key=lambda sequence: (abs(len(sequence.pending) - length), sequence.order))
        group: list[Sequence] = []
        shortest, longest = length, length
        for sequence in candidates:
            low, high = min(shortest, len(sequence.pending)), max(longest, len(sequence.pending))
            if group and (high * (len(group) + 1) > PREFILL_TOKENS or high > 2 * low + 8):
                break
            group.append(sequence)
            shortest, longest = low, high
        return sorted(group, key=lambda sequence: sequence.row)

    def _decode(self) -> None:
        group = self._compact()
        if not group:
            return
        tokens = torch.tensor([[sequence.pending[0]] for sequence in group])
        hidden = self._hidden(tokens, group, None)
        for sequence in group:
            sequence.advance(1)
        self._choose(group, hidden[:, -1])

    def _hidden(self, tokens: Tensor, group: list[Sequence], counts: Tensor | None) -> Tensor:
        rows = torch.tensor([sequence.row for sequence in group])
        return self.model.hidden(tokens.to(self.model.device), cache=self.cache, rows=rows, counts=counts)

    def _logits(self, hidden: Tensor) -> Tensor:
        # A model may have more rows than the tokenizer has ids: those mean nothing and are never chosen.
        return F.linear(hidden, self.model.output_weight[: self.tokenizer.vocab_size]).float()

    def _choose(self, group: list[Sequence], hidden: Tensor) -> None:
        """Sample the next id of each row from its last hidden state [rows, D]."""
        logits = self._logits(hidden)
        ids = sample(logits, [sequence.settings() for sequence in group])
        scores = token_logprobs(logits, ids, [sequence.request.logprobs for sequence in group])
        for sequence, token, score in zip(group, ids, scores):
            sequence.append_token(token, score)
            if sequence.done:
                self._free(sequence)
            elif sequence.calls:
                self._call_tools(sequence)

    def _score_prompt(self, sequence: Sequence, hidden: Tensor, chunk: int = 256) -> None:
        """Log-probabilities of the prompt's ids that follow `hidden` [T, D]; logits of `chunk` positions at a time."""
        prompt = sequence.request.prompt
        for start in range(0, len(hidden), chunk):
            targets = prompt[
                sequence.num_computed_tokens + start + 1 : sequence.num_computed_tokens
                + min(start + chunk, len(hidden))
                + 1
            ]
            if targets:
                logits = self._logits(hidden[start : start + len(targets)])
                top = [sequence.request.logprobs or 0] * len(targets)
                sequence.prompt_logprobs += token_logprobs(logits, targets, top)

    # ------------------------------------------------------------ tools

    def _call_tools(self, sequence: Sequence) -> None:
        futures = [self._threads.submit(run_tool, call) for call in sequence.calls]
        if len(wait(futures, TOOL_PATIENCE).done) == len(futures):
            self._continue(sequence, futures)
        else:
            self._tools[sequence] = futures

    def _collect_tools(self) -> None:
        if not self._tools:
            return
        idle = not self.waiting and len(self._tools) == sum(1 for row in self.rows if row is not None)
        if idle:
            wait(
                [future for futures in self._tools.values() for future in futures],
                timeout=TOOL_POLL,
                return_when=FIRST_COMPLETED,
            )
        for sequence in [r for r, futures in self._tools.items() if all(future.done() for future in futures)]:
            self._continue(sequence, self._tools.pop(sequence))

    def _continue(self, sequence: Sequence, futures: Iterable[Future[ToolResult]]) -> None:
        sequence.append_tool_results([future.result() for future in futures])
        if sequence.done:
            self._free(sequence)


def run_tool(call: ParsedCall) -> ToolResult:
    """Execute a call. One that cannot be read, or fails, has what is wrong with it as its result."""
    if call.error is not None:
        return ToolResult(False, _as_error(call.error))
    result = registry.execute(call.name, call.arguments)
    content = result.content.encode("utf-8", "replace").decode()  # lone surrogates cannot be encoded
    return ToolResult(result.ok, content if result.ok else _as_error(content))


def _as_error(text: str) -> str:
    return text if text.startswith("error") else f"error: {text}"
