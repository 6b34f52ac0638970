"""The chat page: one HTML document without anything from elsewhere, put together from its three parts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

FOLDER = "web"


@dataclass(frozen=True)
class Page:
    """The document, and the Content-Security-Policy under which it works."""

    html: str
    policy: str


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(FOLDER, name).read_text(encoding="utf-8")


def chat_page(model: str, tools: Sequence[str]) -> Page:
    """The page for a served model. The policy lets this page's own script run and no other."""
    settings = json.dumps({"model": model, "tools": list(tools)}).replace("<", "\\u003c")
    script = _part("chat.js").replace("__SETTINGS__", settings)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    document = (
        _part("chat.html")
        .replace("__MODEL__", html.escape(model))
        .replace("/*STYLE*/", _part("chat.css"))
        .replace("/*SCRIPT*/", script)
    )
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(document, policy)
