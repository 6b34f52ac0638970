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
from ikirere.serve.engine.sequence import ParsedCall, Sequence, ToolReply
from ikirere.serve.engine.turn_parser import ChatTokens
from ikirere.tokenizer.base import Tokenizer
from ikirere.tools import registry

PREFILL_TOKENS = 1024  # per step, padding included: bounds how long a prompt keeps decoding rows waiting
TOOL_PATIENCE = 0.005  # seconds: a tool that answers within keeps its row in the batch
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
        self.marks = ChatTokens.of(tokenizer)
        self.max_num_seqs = max_num_seqs
        self.max_model_len = max_model_len or limit
        # One row more than the sequences, through which two rows change places.
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
        self._tools: dict[Sequence, list[Future[ToolReply]]] = {}
        self._threads = ThreadPoolExecutor(tool_threads, thread_name_prefix="tool")

    # ------------------------------------------------------------ the public face

    @property
    def busy(self) -> bool:
        return bool(self.waiting) or any(self.rows)

    def submit(self, request: Request, on_event: Callable[[Event], None] | None = None) -> Sequence:
        """Queue a request. Its events go to `on_event` as they come, the last being "done".

        Raises UserError where the request cannot be met.
        """
        request.check(self.max_model_len, self.tokenizer.vocab_size)
        running = Sequence(request, self.tokenizer, self.marks, self.max_model_len, on_event)
        running.order = self._submitted
        self._submitted += 1
        self.waiting.append(running)
        return running

    def abort(self, running: Sequence) -> None:
        """End a request now; its completion says "abort" and keeps what was written."""
        running.abort()
        for future in self._tools.pop(running, ()):
            future.cancel()
        if running in self.waiting:
            self.waiting.remove(running)
        self._free(running)

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

        Prompts of like length are prefilled together. The result does not depend on the order or the company.
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
        running = self.submit(request, events.append)
        try:
            while True:
                while events:
                    event = events.popleft()
                    yield event
                    if event.kind == "done":
                        return
                self.step()
        finally:
            if not running.done:
                self.abort(running)

    def close(self) -> None:
        """Abort everything and end the tool threads."""
        for running in [*self.waiting, *(row for row in self.rows if row is not None)]:
            self.abort(running)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ rows

    def _admit(self) -> None:
        for row, occupant in enumerate(self.rows):
            if not self.waiting:
                return
            if occupant is None:
                running = self.waiting.popleft()
                running.row = row
                self.rows[row] = running
                self.cache.reset(row)

    def _free(self, running: Sequence) -> None:
        if running.row >= 0:
            self.rows[running.row] = None
            running.row = -1

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
        count = sum(1 for running in self.rows if running is not None and running.ready)
        ready = [running is not None and running.ready for running in self.rows]
        holes = [row for row in range(count) if not ready[row]]
        movers = [row for row in range(count, self.max_num_seqs) if ready[row]]
        for hole, mover in zip(holes, movers):
            self._swap(hole, mover)
        return [running for running in self.rows[:count] if running is not None]

    # ------------------------------------------------------------ the two kinds of pass

    def _prefill(self) -> None:
        group = self._prefill_group()
        if not group:
            return
        counts = [min(len(running.pending), PREFILL_TOKENS) for running in group]
        width = max(counts)
        tokens = torch.tensor(
            [running.pending[:count] + [0] * (width - count) for running, count in zip(group, counts)]
        )
        hidden = self._hidden(tokens, group, None if min(counts) == width else torch.tensor(counts))
        through: list[int] = []
        for number, (running, count) in enumerate(zip(group, counts)):
            if running.request.prompt_logprobs:
                self._score_prompt(running, hidden[number, :count])
            running.feed(count)
            if not running.pending:
                through.append(number)
        if through:
            last = hidden[through, [counts[number] - 1 for number in through]]
            self._choose([group[number] for number in through], last)

    def _prefill_group(self) -> list[Sequence]:
        """The oldest row to prefill and others of like length, within the budget."""
        candidates = [running for running in self.rows if running is not None and running.prefilling]
        if not candidates:
            return []
        oldest = min(candidates, key=lambda running: running.order)
        length = len(oldest.pending)
        candidates.sort(key=lambda running: (abs(len(running.pending) - length), running.order))
        group: list[Sequence] = []
        shortest, longest = length, length
        for running in candidates:
            low, high = min(shortest, len(running.pending)), max(longest, len(running.pending))
            if group and (high * (len(group) + 1) > PREFILL_TOKENS or high > 2 * low + 8):
                break
            group.append(running)
            shortest, longest = low, high
        return sorted(group, key=lambda running: running.row)

    def _decode(self) -> None:
        group = self._compact()
        if not group:
            return
        tokens = torch.tensor([[running.pending[0]] for running in group])
        hidden = self._hidden(tokens, group, None)
        for running in group:
            running.feed(1)
        self._choose(group, hidden[:, -1])

    def _hidden(self, tokens: Tensor, group: list[Sequence], counts: Tensor | None) -> Tensor:
        rows = torch.tensor([running.row for running in group])
        return self.model.hidden(tokens.to(self.model.device), cache=self.cache, rows=rows, counts=counts)

    def _logits(self, hidden: Tensor) -> Tensor:
        # A model may have more rows than the tokenizer has ids: those mean nothing and are never chosen.
        return F.linear(hidden, self.model.output_weight[: self.tokenizer.vocab_size]).float()

    def _choose(self, group: list[Sequence], hidden: Tensor) -> None:
        """Sample the next id of each row from its last hidden state [rows, D]."""
        logits = self._logits(hidden)
        ids = sample(logits, [running.settings() for running in group])
        scores = token_logprobs(logits, ids, [running.request.logprobs for running in group])
        for running, token, score in zip(group, ids, scores):
            running.accept(token, score)
            if running.done:
                self._free(running)
            elif running.calls:
                self._call_tools(running)

    def _score_prompt(self, running: Sequence, hidden: Tensor, chunk: int = 256) -> None:
        """Log-probabilities of the prompt's ids that follow `hidden` [T, D]; logits of `chunk` places at a time."""
        prompt = running.request.prompt
        for start in range(0, len(hidden), chunk):
            targets = prompt[running.fed + start + 1 : running.fed + min(start + chunk, len(hidden)) + 1]
            if targets:
                logits = self._logits(hidden[start : start + len(targets)])
                top = [running.request.logprobs or 0] * len(targets)
                running.prompt_logprobs += token_logprobs(logits, targets, top)

    # ------------------------------------------------------------ tools

    def _call_tools(self, running: Sequence) -> None:
        futures = [self._threads.submit(run_tool, call) for call in running.calls]
        if len(wait(futures, TOOL_PATIENCE).done) == len(futures):
            self._answer(running, futures)
        else:
            self._tools[running] = futures

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
        for running in [r for r, futures in self._tools.items() if all(future.done() for future in futures)]:
            self._answer(running, self._tools.pop(running))

    def _answer(self, running: Sequence, futures: Iterable[Future[ToolReply]]) -> None:
        running.answer([future.result() for future in futures])
        if running.done:
            self._free(running)


def run_tool(call: ParsedCall) -> ToolReply:
    """Execute a call; a call that cannot be read answers with what is wrong with it."""
    if call.error is not None:
        return ToolReply(call.name, False, _as_error(call.error))
    result = registry.execute(call.name, call.arguments)
    content = result.content.encode("utf-8", "replace").decode()  # what is not Unicode text cannot be fed
    return ToolReply(call.name, result.ok, content if result.ok else _as_error(content))


def _as_error(text: str) -> str:
    return text if text.startswith("error") else f"error: {text}"
