"""`conversations`: so many rows of one kind, for a seed, without a question twice."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ikirere.errors import UserError
from ikirere.posttrain.generate import calculator, chat, direct, documents, strings, units
from ikirere.posttrain.generate.context import Generator, GeneratorContext, SourceDocument
from ikirere.posttrain.generate.row import ConversationDraft, Row, Split, build
from ikirere.tools import sandbox
from ikirere.tools.registry import execute

KINDS: dict[str, Generator] = {
    "calculator": calculator.drafts,
    "units": units.drafts,
    "strings": strings.drafts,
    "documents": documents.drafts,
    "chat": chat.drafts,
    "direct": direct.drafts,
}
PATIENCE = 3000  # drafts in a row that bring no new question before a kind counts as exhausted
HISTORY_SHARE = 0.06  # training rows that begin with an earlier exchange

# Runs many programs in one sandboxed process; each gives what `python_exec` gives for it alone, where it prints
# nothing and ends with an expression.
_MANY = """
import ast, json, sys
programs = json.loads({programs!r})
def shown(program):
    tree = ast.parse(program, "<code>")
    last = ast.Expression(tree.body.pop().value)
    scope = {{"__name__": "__main__"}}
    exec(compile(tree, "<code>", "exec"), scope)
    return str(eval(compile(last, "<code>", "eval"), scope))
json.dump([shown(program) for program in programs], sys.stdout)
"""


def conversations(
    kind: str,
    count: int,
    seed: int,
    split: Split,
    documents: Sequence[SourceDocument] = (),
) -> list[Row]:
    """`count` conversations of a kind; the same for the same seed, split and documents.

    documents: rows with `text`, `path` and `domain`, those of the same split; kinds `documents` and `strings`
    take their text from them. Questions of the two splits are disjoint, whatever the seeds. Where a kind has no
    more to ask, split train repeats questions and split heldout gives fewer rows than asked for, none twice.

    Raises UserError for an unknown kind and where there is nothing to ask at all.
    """
    if kind not in KINDS:
        raise UserError(f"kind {kind!r}: no such conversations; kinds are {', '.join(KINDS)}")
    rng = random.Random(f"{kind}/{split}/{seed}")
    context = GeneratorContext(rng, split, documents)
    chosen = _distinct(kind, count, split, KINDS[kind](context))
    if split == "train" and kind in ("calculator", "chat", "strings", "units"):
        chosen = [_with_history(draft, rng, context) for draft in chosen]
    results = _results(chosen)
    return [build(kind, split, draft, result) for draft, result in zip(chosen, results)]


def _distinct(
    kind: str, count: int, split: Split, source: Iterator[ConversationDraft]
) -> list[ConversationDraft]:
    chosen: list[ConversationDraft] = []
    seen: set[str] = set()
    stale = 0
    while len(chosen) < count:
        draft = next(source, None)
        if draft is not None and draft.question not in seen:
            seen.add(draft.question)
            chosen.append(draft)
            stale = 0
            continue
        stale += 1
        if draft is not None and stale < PATIENCE:
            continue
        if not chosen:
            raise UserError(
                f"kind {kind}: the {split} documents hold nothing to ask about; leave the kind out"
            )
        if split == "heldout":
            break
        chosen += chosen[: count - len(chosen)]
    return chosen


def _with_history(
    draft: ConversationDraft, rng: random.Random, context: GeneratorContext
) -> ConversationDraft:
    if rng.random() >= HISTORY_SHARE:
        return draft
    if "calculator" in draft.tools and rng.random() < 0.5:
        return replace(draft, history=calculator.exchange(context))
    return replace(draft, history=chat.exchange(rng, context))


def _results(drafts: Sequence[ConversationDraft]) -> list[str | None]:
    """The real result of each draft's call. Raises UserError where a tool fails."""
    results: list[str | None] = [None] * len(drafts)
    programs: dict[int, str] = {}
    for i, draft in enumerate(drafts):
        if draft.call is None:
            continue
        if draft.call.name == "python_exec":
            programs[i] = draft.call.arguments["code"]
            continue
        result = execute(draft.call.name, draft.call.arguments)
        if not result.ok:
            raise UserError(f"{draft.call.name}({draft.call.arguments}): {result.content}")
        results[i] = result.content
    for i, text in zip(programs, _run_many(list(programs.values()))):
        results[i] = text
    return results


def _run_many(programs: Sequence[str], size: int = 400) -> list[str]:
    """Results of programs that end with an expression, `size` of them per sandboxed process."""
    limits = sandbox.Limits(cpu_ms=20_000, wall_ms=120_000, output_bytes=10**7)
    results: list[str] = []
    for start in range(0, len(programs), size):
        part = json.dumps(programs[start : start + size])
        ran = sandbox.run(_MANY.format(programs=part), limits)
        if not ran.ok:
            raise UserError(f"python_exec could not answer the generated questions: {ran.content}")
        results += json.loads(ran.content)
    return results
