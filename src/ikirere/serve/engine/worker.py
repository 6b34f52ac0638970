"""The engine's thread: requests come through a queue, events go back to the event loop of the caller."""

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

MAX_WAITING = 512  # requests


class QueueFull(Exception):
    """Too many requests wait; the caller may try again later."""


class EngineStopped(Exception):
    """The engine takes no more requests."""


class GenerationHandle:
    """One generation as its caller sees it. `events` ends after "done"; `cancel` may be called at any time."""

    def __init__(self, worker: Worker, request: Request) -> None:
        self.request = request
        self.sequence: Sequence | None = None
        self.since = self.last = time.perf_counter()
        self.counted = 0  # sampled tokens that are in the metrics
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
            raise RuntimeError("the generation ended without a result")
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
        self._handles: list[GenerationHandle] = []
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
        """Queue a request. Raises QueueFull, EngineStopped, or UserError where the request cannot be met."""
        if self._stopping or not self.alive:
            raise EngineStopped("the server is shutting down")
        if len(self.engine.waiting) + self.commands.qsize() >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING} requests wait already; try again later")
        request.check(self.engine.max_model_len, self.engine.tokenizer.vocab_size)
        handle = GenerationHandle(self, request)
        self.commands.put(("submit", handle))
        return handle

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while True:
            stop = self._take_commands()
            if stop:
                break
            try:
                self.engine.step()
                self._count()
            except Exception as error:  # a defect must not leave clients waiting
                self._fail(error)
        self._fail(EngineStopped("the server is shutting down"))
        self.engine.close()

    def _take_commands(self) -> bool:
        """Take all commands; wait for one where there is nothing else to do. True: stop."""
        block = not self.engine.busy
        while True:
            try:
                command, handle = self.commands.get(block=block)
            except queue.Empty:
                return False
            block = False
            if handle is None:
                return True
            if command == "submit" and not handle.over:
                self._begin(handle)
            elif command == "abort" and handle.sequence is not None:
                self.engine.abort(handle.sequence)
                self._count()

    def _begin(self, handle: GenerationHandle) -> None:
        def on_event(event: Event) -> None:
            if event.kind == "tool_result":
                outcome = "ok" if event.data["ok"] else "error"
                self.metrics.tool_calls.labels(event.data["name"] or "unreadable", outcome).inc()
            handle.put(event)

        try:
            handle.sequence = self.engine.submit(handle.request, on_event)
        except Exception as error:
            handle.put(error)
            return
        self._handles.append(handle)
        self.metrics.prompt_tokens.inc(len(handle.request.prompt))

    def _count(self) -> None:
        """Bring the metrics up to date after a step."""
        now = time.perf_counter()
        ended = False
        for handle in self._handles:
            sequence = handle.sequence
            if sequence is None:
                continue
            if sequence.sampled > handle.counted:
                first = handle.counted == 0
                (self.metrics.first_token if first else self.metrics.per_token).observe(now - handle.last)
                self.metrics.generated_tokens.inc(sequence.sampled - handle.counted)
                handle.counted, handle.last = sequence.sampled, now
            if sequence.done:
                ended = True
                self.metrics.requests.labels(sequence.finish_reason).inc()
                self.metrics.duration.observe(now - handle.since)
        if ended:
            self._handles = [h for h in self._handles if h.sequence is not None and not h.sequence.done]
        self.metrics.waiting.set(len(self.engine.waiting))
        self.metrics.running.set(sum(1 for row in self.engine.rows if row is not None))

    def _fail(self, error: Exception) -> None:
        for handle in self._handles:
            handle.put(error)
            if handle.sequence is not None:
                self.engine.abort(handle.sequence)
        self._handles = []
