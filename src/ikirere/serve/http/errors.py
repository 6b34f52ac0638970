"""Errors in OpenAI's form, with the status codes that its clients map to exceptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ikirere.errors import UserError
from ikirere.serve.engine.request import ContextTooLong
from ikirere.serve.engine.worker import EngineStopped, QueueFull

TYPES = {404: "not_found_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class ApiError(Exception):
    """A response other than 200."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def as_api_error(error: Exception) -> ApiError:
    """Any failure as a response; what the client did not cause is a 500 without details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextTooLong):
        return ApiError(400, str(error), "messages", "context_length_exceeded")
    if isinstance(error, QueueFull):
        return ApiError(429, str(error))
    if isinstance(error, EngineStopped):
        return ApiError(503, str(error))
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    return ApiError(500, f"the server failed ({type(error).__name__})")


def explain(errors: Sequence[Any]) -> ApiError:
    """The first problem of a refused body. Of a union's branches the deepest is the one that was meant."""
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    first = unknown[0] if unknown else max(errors, key=lambda error: len(error["loc"]))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON ({first.get('ctx', {}).get('error', first['msg'])})")
    path = ".".join(str(part) for part in first["loc"] if _is_key(part)) or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unknown parameter: {path}", path, "unknown_parameter")
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{path}: {message}" if path else message, path, "invalid_value")


def _is_key(part: int | str) -> bool:
    """Is this part of an error's path a key or index, and not the name of a union's branch?"""
    if isinstance(part, int):
        return True
    return part not in ("body", "str", "int") and "[" not in part and not part[:1].isupper()


def install(app: FastAPI) -> None:
    """Make every error response of `app` one of OpenAI's form."""

    def answer(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status)

    @app.exception_handler(ApiError)
    async def _api(request: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(UserError)
    async def _user(request: Request, error: UserError) -> JSONResponse:
        return answer(as_api_error(error))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(explain(error.errors()))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return answer(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))

    @app.exception_handler(Exception)
    async def _any(request: Request, error: Exception) -> JSONResponse:
        return answer(as_api_error(error))
