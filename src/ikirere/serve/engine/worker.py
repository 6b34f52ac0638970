"""The engine's thread: requests come by a queue, events go back to the event loop that asked."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator

from ikirere.serve.engine.engine import Engine
from ikirere.serve.engine.metrics import Metrics
from ikirere.serve.engine.request import Completion, Event, Request
from ikirere.serve.engine.sequence import Sequence
from ikirere.serve.http.errors import ApiError

MAX_WAITING = 512  # generations


class GenerationHandle:
    """One generation as its asker sees it. `events` ends after "done"; `cancel` may be called at any time."""

    def __init__(self, worker: Worker, request: Request) -> None:
        self.request = request
        self.running: Sequence | None = None
        self.since = self.last = time.perf_counter()
        self.counted = 0  # sampled tokens that the metrics know
        self.over = False
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | Exception] = asyncio.Queue()

    def put(self, item: Event | Exception) -> None:
        """Called by the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self.over = True

    async def events(self) -> AsyncIterator[Event]:
        """Events as they come; cancelling the iteration aborts the generation."""
        try:
            while True:
                item = await self._queue.get()
                if isinstance(item, Exception):
                    self.over = True
                    raise item
                if item.kind == "done":
                    self.over = True
                yield item
                if self.over:
                    return
        finally:
            self.cancel()

    async def completion(self) -> Completion:
        """Wait for the end."""
        result: Completion | None = None
        async for event in self.events():
            if event.kind == "done":
                result = event.data
        if result is None:
            raise ApiError(500, "the generation ended without a result")
        return result

    def cancel(self) -> None:
        """Abort, where it is not over. Safe from any thread and more than once."""
        if not self.over:
            self.over = True
            self._worker.commands.put(("abort", self))


class Worker:
    """Owns the engine. `start` and `stop` once; `submit` from coroutines."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine = engine
        self.metrics = metrics
        self.commands: queue.Queue[tuple[str, GenerationHandle | None]] = queue.Queue()
        self._tickets: list[GenerationHandle] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping = False

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Abort what runs and end the thread."""
        self._stopping = True
        self.commands.put(("stop", None))
        self._thread.join(timeout)

    def submit(self, request: Request) -> GenerationHandle:
        """Queue a request. Raises ApiError (429, 503) or UserError where it cannot be taken."""
        if self._stopping or not self.alive:
            raise ApiError(503, "the server is shutting down")
        if len(self.engine.waiting) + self.commands.qsize() >= MAX_WAITING:
            raise ApiError(429, f"{MAX_WAITING} generations wait already; try again later")
        request.check(self.engine.max_model_len, self.engine.tokenizer.vocab_size)
        ticket = GenerationHandle(self, request)
        self.commands.put(("submit", ticket))
        return ticket

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while True:
            stop = self._obey()
            if stop:
                break
            try:
                self.engine.step()
                self._count()
            except Exception as error:  # a defect must not leave clients waiting
                self._fail(error)
        self._fail(ApiError(503, "the server is shutting down"))
        self.engine.close()

    def _obey(self) -> bool:
        """Take all commands; wait for one where there is nothing else to do. True: stop."""
        block = not self.engine.busy
        while True:
            try:
                command, ticket = self.commands.get(block=block)
            except queue.Empty:
                return False
            block = False
            if ticket is None:
                return True
            if command == "submit" and not ticket.over:
                self._begin(ticket)
            elif command == "abort" and ticket.running is not None:
                self.engine.abort(ticket.running)
                self._count()

    def _begin(self, ticket: GenerationHandle) -> None:
        def on_event(event: Event) -> None:
            if event.kind == "tool_result":
                outcome = "ok" if event.data["ok"] else "error"
                self.metrics.tool_calls.labels(event.data["name"] or "unreadable", outcome).inc()
            ticket.put(event)

        try:
            ticket.running = self.engine.submit(ticket.request, on_event)
        except Exception as error:
            ticket.put(error)
            return
        self._tickets.append(ticket)
        self.metrics.prompt_tokens.inc(len(ticket.request.prompt))

    def _count(self) -> None:
        """Bring the metrics up to date after a step."""
        now = time.perf_counter()
        ended = False
        for ticket in self._tickets:
            running = ticket.running
            if running is None:
                continue
            if running.sampled > ticket.counted:
                first = ticket.counted == 0
                (self.metrics.first_token if first else self.metrics.per_token).observe(now - ticket.last)
                self.metrics.generated_tokens.inc(running.sampled - ticket.counted)
                ticket.counted, ticket.last = running.sampled, now
            if running.done:
                ended = True
                self.metrics.requests.labels(running.finish_reason).inc()
                self.metrics.duration.observe(now - ticket.since)
        if ended:
            self._tickets = [t for t in self._tickets if t.running is not None and not t.running.done]
        self.metrics.waiting.set(len(self.engine.waiting))
        self.metrics.running.set(sum(1 for row in self.engine.rows if row is not None))

    def _fail(self, error: Exception) -> None:
        for ticket in self._tickets:
            ticket.put(error)
            if ticket.running is not None:
                self.engine.abort(ticket.running)
        self._tickets = []
