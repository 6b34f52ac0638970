"""The chat format: conversations to ids by the one chat template (chat_template.jinja); see also `assistant_parser`.

    <|system|>SYSTEM TEXT
    Tools:
    NAME(parameter, parameter): description<|end|>
    <|user|>CONTENT<|end|>
    <|assistant|><scratchpad>REASONING</scratchpad>CONTENT<call_tool>{"name": ..., "arguments": {...}}</call_tool><|end|>
    <tool_result>CONTENT</tool_result>

(without the line breaks between messages). Special tokens come from the template's own text alone: each value that
the template prints is held back while it is rendered and encoded as plain text, so a user, a document, a tool's
result, name or argument that spells `<call_tool>` gives the letters, never the token. For values without such
spellings the ids equal those of transformers' `apply_chat_template`.

Training renders whole conversations (`render`). Serving renders the prompt, reads the turn that the model writes
(`assistant_parser`, id by id) and appends tools' results (`tool_result_ids`): the same ids, in the same order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ikirere.errors import UserError
from ikirere.tokenizer.base import Tokenizer, read_template
from ikirere.tokenizer.specials import (
    ASSISTANT,
    BOS,
    CALL_TOOL,
    CALL_TOOL_END,
    PAD,
    SCRATCHPAD,
    SCRATCHPAD_END,
    SPECIALS,
    SYSTEM,
    TOOL_RESULT,
    TOOL_RESULT_END,
    USER,
)

TEMPLATE = read_template()
ROLES = ("system", "developer", "user", "assistant", "tool")

_OPEN, _CLOSE = (
    "\0open\0",
    "\0close\0",
)  # the template's own text holds no NUL, and values never reach the output
_MARK = re.compile("\0([^\0]*)\0")
_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids. `mask[i]` is True where the assistant wrote `ids[i]` (equal lengths)."""

    ids: list[int]
    mask: list[bool]


@dataclass(frozen=True)
class ChatTokens:
    """Ids of the special tokens that structure an assistant's turn, and of those that it may not contain."""

    end: int
    eos: int
    scratchpad: int
    scratchpad_end: int
    call_tool: int
    call_tool_end: int
    forbidden: tuple[int, ...]  # what no assistant may write: roles, tool results, padding

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTokens:
        forbidden = (PAD, BOS, SYSTEM, USER, ASSISTANT, TOOL_RESULT, TOOL_RESULT_END)
        return cls(
            end=tokenizer.end,
            eos=tokenizer.eos,
            scratchpad=tokenizer.id(SCRATCHPAD),
            scratchpad_end=tokenizer.id(SCRATCHPAD_END),
            call_tool=tokenizer.id(CALL_TOOL),
            call_tool_end=tokenizer.id(CALL_TOOL_END),
            forbidden=tuple(tokenizer.id(special) for special in forbidden),
        )


# ---------------------------------------------------------------- messages to ids


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    require_mask: bool = False,
    row: str | int | None = None,
) -> Rendered:
    """Ids and assistant mask of a conversation.

    messages: dicts with `role` and `content` (text, or OpenAI's list of text parts), for the assistant also
    `reasoning_content` and `tool_calls` (arguments as a dict, or as JSON text, which is read first).
    tools: OpenAI's tool list. add_generation_prompt: end with <|assistant|>, for the model to continue.
    require_mask: refuse a conversation in which nothing would be trained. row: its name in error messages.

    Raises UserError for a role, content or call of another form (naming row and message) and for lone surrogates.
    """
    where = "conversation" if row is None else f"row {row}"
    plain = check_messages(messages, where)
    values: list[str] = []
    try:
        output = _template().render(
            messages=plain,
            tools=tools or None,
            add_generation_prompt=add_generation_prompt,
            held_values=values,
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise UserError(f"{where}: does not fit the chat template ({error})") from None
    ids: list[int] = []
    mask: list[bool] = []
    runs = list(_runs(output, values))
    texts = iter(tokenizer.encode_batch([text for text, special, _ in runs if not special]))
    for text, special, trained in runs:
        piece = [tokenizer.id(text)] if special else next(texts)
        ids += piece
        mask += [trained] * len(piece)
    if require_mask and not any(mask):
        raise UserError(
            f"{where}: has no assistant message, so nothing of it would be trained; drop it or add one"
        )
    return Rendered(ids, mask)


def tool_result_ids(tokenizer: Tokenizer, contents: Sequence[str]) -> list[int]:
    """The ids after an assistant's turn that called tools: each tool's result, then <|assistant|>.

    They are what `render` gives for these messages at this position of a conversation: the template keeps no text
    across the special tokens around them. Raises UserError for lone surrogates.
    """
    messages = [{"role": "tool", "content": content} for content in contents]
    return render(tokenizer, messages, add_generation_prompt=True).ids


def forced_call_ids(tokenizer: Tokenizer, name: str | None = None) -> list[int]:
    """The first ids of a turn that must be a tool call: of any tool, or of the one named."""
    opening = [] if name is None else tokenizer.encode(f'{{"name": {_json(name)}, "arguments": ')
    return [tokenizer.id(CALL_TOOL), *opening]


def _runs(output: str, values: Sequence[str]) -> Iterable[tuple[str, bool, bool]]:
    """(text or special token, is special, is trained), with the text between two special tokens as one run."""
    held: list[str] = []
    trained = False

    def release() -> Iterable[tuple[str, bool, bool]]:
        if text := "".join(held):
            yield text, False, trained
        held.clear()

    for i, part in enumerate(_MARK.split(output)):
        if i % 2 and part.isdigit():
            held.append(values[int(part)])
        elif i % 2:
            yield from release()
            trained = part == "open"
        else:
            for j, literal in enumerate(_SPECIAL.split(part)):
                if j % 2:
                    yield from release()
                    yield literal, True, trained
                else:
                    held.append(literal)
    yield from release()


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}`: what transformers reads as the assistant's part."""

    tags = {"generation"}  # noqa: RUF012 (the attribute's type is jinja2's)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        opened, closed = (nodes.Output([nodes.TemplateData(mark)], lineno=line) for mark in (_OPEN, _CLOSE))
        return [opened, *body, closed]


@jinja2.pass_context
def _hold(context: Context, value: Any) -> str:
    """Keeps a printed value out of the output and leaves its number there.

    `pass_context` also keeps jinja2 from running this while it compiles, where no values are held yet.
    """
    values: list[str] = context["held_values"]
    values.append(str(value))
    return f"\0{len(values) - 1}\0"


def _json(value: Any, separators: tuple[str, str] | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, separators=separators)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation], finalize=_hold
    )
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(TEMPLATE)


def check_messages(messages: Sequence[Message], where: str) -> list[dict[str, Any]]:
    """The messages as the template takes them: no absent keys, call arguments as dicts.

    Raises UserError naming `where` and the message for a role, content or call of another form.
    """
    if not messages:
        raise UserError(f"{where}: has no messages")
    return [_plain(message, f"{where}, message {i}") for i, message in enumerate(messages)]


def _plain(message: Message, where: str) -> dict[str, Any]:
    """The message with absent keys left out and call arguments as dicts. Raises UserError for any other form."""
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        role = message.get("role") if isinstance(message, Mapping) else message
        raise UserError(f"{where}: role {role!r} is not one of {', '.join(ROLES)}")
    plain = {key: value for key, value in message.items() if value is not None}
    content = plain.setdefault("content", "")
    if not isinstance(content, str) and not (
        isinstance(content, list)
        and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content)
    ):
        raise UserError(
            f"{where}: content is {type(content).__name__}; accepted: text, or a list of text parts"
        )
    if not isinstance(plain.get("reasoning_content", ""), str):
        raise UserError(f"{where}: reasoning_content is not text")
    if "tool_calls" in plain:
        if not isinstance(plain["tool_calls"], (list, tuple)):
            raise UserError(f"{where}: tool_calls is not a list")
        plain["tool_calls"] = [_plain_call(call, where) for call in plain["tool_calls"]]
    return plain


def _plain_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f"{where}: a tool call has no function name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise UserError(f"{where}: arguments of {function['name']} are not JSON ({error})") from None
    if not isinstance(arguments, Mapping):
        raise UserError(f"{where}: arguments of {function['name']} are not an object")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
