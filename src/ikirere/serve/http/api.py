"""The HTTP server: OpenAI's endpoints, health, metrics and a chat page, over one engine."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter
from starlette.types import ASGIApp, Receive, Scope, Send

from ikirere.errors import UserError
from ikirere.model.decoder import Decoder
from ikirere.serve.engine.cpu_threads import fit_threads
from ikirere.serve.engine.engine import Engine
from ikirere.serve.engine.metrics import Metrics
from ikirere.serve.engine.worker import GenerationHandle, Worker
from ikirere.serve.http import chat_route, completion_route
from ikirere.serve.http.errors import ApiError, as_api_error, install
from ikirere.serve.http.page import chat_page
from ikirere.serve.http.protocol import ChatRequest, CompletionRequest
from ikirere.serve.http.service import Service
from ikirere.serve.load import find_model, load_run_model, model_name, serve_settings
from ikirere.tokenizer.base import Tokenizer
from ikirere.tools import registry

SHUTDOWN_SECONDS = 5  # requests may end within these; then they are aborted
PATHS = ("/v1/models", "/v1/chat/completions", "/v1/completions", "/health", "/metrics", "/")


def create_app(
    model: Decoder,
    tokenizer: Tokenizer,
    name: str,
    max_num_seqs: int = 4,
    max_model_len: int | None = None,
    tools: Sequence[str] | None = None,
    temperature: float = 0.0,
    notice: str | None = None,
) -> FastAPI:
    """The application. Its engine thread starts and ends with it (lifespan).

    tools: names that the engine offers and runs where a client brings none (default: all of the registry).
    temperature: for requests that give none. notice: a line about the model, shown by /health.
    """
    metrics = Metrics()
    worker = Worker(Engine(model, tokenizer, max_num_seqs=max_num_seqs, max_model_len=max_model_len), metrics)
    service = Service(
        name=name,
        tokenizer=tokenizer,
        worker=worker,
        max_model_len=worker.engine.max_model_len,
        created=int(time.time()),
        tools=tuple(registry.TOOLS if tools is None else tools),
        temperature=temperature,
        notice=notice,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.stop)

    app = FastAPI(title=f"Ikirere: {name}", lifespan=lifespan, openapi_url="/openapi.json", redoc_url=None)
    app.state.service = service
    install(app)

    app.add_middleware(_Counting, registry=metrics.registry)
    _plain_routes(app, service, metrics)
    _openai_routes(app, service)
    return app


class _Counting:
    """Counts responses by path and status. Plain ASGI, so that streams and disconnects pass through untouched."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self.app = app
        labels = ["path", "status"]
        self.responses = Counter("ikirere_http_requests", "HTTP responses", labels, registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in PATHS else "other"
                self.responses.labels(path, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)


def _plain_routes(app: FastAPI, service: Service, metrics: Metrics) -> None:
    page = chat_page(service.name, service.tools)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def chat() -> HTMLResponse:
        return HTMLResponse(page.html, headers={"Content-Security-Policy": page.policy})

    @app.get("/health")
    async def health() -> JSONResponse:
        alive = service.worker.alive
        body = {"status": "ok" if alive else "engine stopped", "model": service.name}
        if service.notice is not None:
            body["notice"] = service.notice
        return JSONResponse(body, status_code=200 if alive else 503)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _openai_routes(app: FastAPI, service: Service) -> None:
    card = {"id": service.name, "object": "model", "created": service.created, "owned_by": "ikirere"}
    card["max_model_len"] = service.max_model_len

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        _known(service, model)
        return card

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        _known(service, body.model)
        handles = service.submit(chat_route.build(service, body))
        if body.stream:
            return _sse(chat_route.chunks(service, body, handles), handles)
        return JSONResponse(await _or_disconnect(chat_route.answer(service, body, handles), request, handles))

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        _known(service, body.model)
        handles = service.submit(completion_route.build(service, body))
        if body.stream:
            return _sse(completion_route.chunks(service, body, handles), handles)
        answer = completion_route.answer(service, body, handles)
        return JSONResponse(await _or_disconnect(answer, request, handles))


def _known(service: Service, model: str) -> None:
    if model != service.name:
        message = f"the model '{model}' does not exist here; this server has '{service.name}'"
        raise ApiError(404, message, "model", "model_not_found")


def _sse(chunks: AsyncIterator[dict[str, Any]], handles: list[GenerationHandle]) -> StreamingResponse:
    """Server-sent events, one per chunk, [DONE] last. A client that leaves aborts the generations."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for chunk in chunks:
                yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield f"data: {json.dumps(as_api_error(error).body())}\n\n"
        finally:
            for handle in handles:
                handle.cancel()

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)


async def _or_disconnect(
    answer: Awaitable[dict[str, Any]], request: Request, handles: list[GenerationHandle]
) -> dict[str, Any]:
    """Await the answer, unless the client leaves first: then abort."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(answer)
    watch = asyncio.create_task(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client closed the connection")
        return task.result()
    finally:
        watch.cancel()
        task.cancel()
        for handle in handles:
            handle.cancel()


# ---------------------------------------------------------------- the process


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises UserError naming port and host where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(128)
    except (OSError, OverflowError) as error:
        sock.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise UserError(
                f"port {port} on {host} is in use; give another with --port (0: any free one)"
            ) from None
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}:{port} ({reason}); give another --host or --port") from None
    return sock


def serve(
    path: str | Path,
    host: str | None = None,
    port: int | None = None,
    max_num_seqs: int | None = None,
    max_model_len: int | None = None,
    tools: Sequence[str] | None = None,
    temperature: float = 0.0,
    name: str | None = None,
    say: Callable[[str], None] = print,
    notice: str | None = None,
) -> None:
    """Serve a run's model, or a Hugging Face folder, until SIGINT or SIGTERM.

    host, port, max_num_seqs and max_model_len default to the `serve` section of the run's recipe. notice: a line
    printed first and shown by /health, such as that the model is stale. Raises UserError where there is no model at
    `path` or the port cannot be had; the port is tried first.
    """
    find_model(path)
    settings = serve_settings(path)
    host = settings.host if host is None else host
    sock = listen(host, settings.port if port is None else port)
    if threading.current_thread() is threading.main_thread():
        # uvicorn ends in good order and then raises the signal again: that is how a server is meant to end.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        model, tokenizer, folder = load_run_model(path)
        max_num_seqs = max_num_seqs or settings.max_num_seqs
        fit_threads(model, max_num_seqs)
        name = name or model_name(folder)
        max_model_len = max_model_len or settings.max_model_len
        app = create_app(model, tokenizer, name, max_num_seqs, max_model_len, tools, temperature, notice)
        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=SHUTDOWN_SECONDS, lifespan="on", ws="none"
        )
        shown = f"[{host}]" if ":" in host else host
        base = f"http://{shown}:{sock.getsockname()[1]}"
        if notice is not None:
            say(notice)
        say(f"{name}: chat page {base}  OpenAI endpoint {base}/v1  (Ctrl-C ends it)")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[sock])
    finally:
        sock.close()
