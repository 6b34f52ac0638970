"""Kind documents: questions about an excerpt of a real document, answered from the excerpt without a tool."""

from __future__ import annotations

import ast
import itertools
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from ikirere.posttrain.generate.context import GeneratorContext, SourceDocument
from ikirere.posttrain.generate.row import ConversationDraft

LONGEST_EXCERPT = 260  # characters
LONGEST_DOCUMENT = 60_000  # characters: longer ones take long to parse and hold nothing that others lack
PER_DOCUMENT = {"train": 8, "heldout": 40}  # questions about one document

_HEADING = re.compile(
    r"^(?:#{1,4} +(?P<hash>[^\n#`*]{4,50})|(?P<under>[A-Z][^\n:`*|]{3,50})\n[=\-~^]{4,})$", re.M
)

_SENTENCE_END = re.compile(r"(?<=[a-z0-9][.!?]) +(?=[A-Z])")
LONGEST_QUOTE = 90  # characters of a sentence that is asked for

DEFINED = (
    "Which function is defined here?",
    "What is the function called?",
    "What function does this define?",
    "Name the function.",
)
SAYS = (
    "What does the docstring of {name} say?",
    "What does {name} do?",
    "What does the docstring say in its first line?",
    "Quote the first line of the docstring.",
)
ARGUMENTS = (
    "How many arguments does {name} take?",
    "How many parameters has {name}?",
    "How many arguments are there?",
    "Count the arguments of {name}.",
)
FIRST_ARGUMENT = (
    "What is the first argument of {name}?",
    "What is the first parameter called?",
    "Which argument comes first?",
    "Name the first argument.",
)
IMPORTED = (
    "Which module is imported first?",
    "What is the first module that is imported?",
    "Which module is imported in the first line?",
    "Name the first import.",
)
CLASS = (
    "Which class is defined here?",
    "What is the class called?",
    "What class does this define?",
    "Name the class.",
)
BASE = (
    "What does {name} inherit from?",
    "What is the base class of {name}?",
    "Which class is {name} derived from?",
    "Name the base of {name}.",
)
HEADING = (
    "What is the heading of this text?",
    "What is the title here?",
    "Which heading does this text have?",
    "Name the heading.",
)
FIRST_SENTENCE = (
    "What is the first sentence?",
    "Quote the first sentence of this text.",
    "Which sentence does the text begin with?",
    "How does the text begin?",
)
LAST_SENTENCE = (
    "What is the last sentence?",
    "Quote the last sentence of this text.",
    "Which sentence does the text end with?",
    "How does the text end?",
)
WORD_AFTER = (
    'Which word follows "{name}"?',
    'What is the word after "{name}"?',
    'Which word comes right after "{name}"?',
    'Name the word behind "{name}".',
)


def _parsed(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _excerpt(lines: list[str], first: int, last: int) -> str | None:
    """Lines first to last (from 1) without their common indentation; None where that is too long."""
    taken = lines[first - 1 : last]
    margin = min((len(line) - len(line.lstrip()) for line in taken if line.strip()), default=0)
    text = "\n".join(line[margin:].rstrip() for line in taken).strip("\n")
    return text if 0 < len(text) <= LONGEST_EXCERPT else None


def _first_line(node: ast.AST) -> str | None:
    """The first line of a docstring, where it is a short sentence."""
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module)
    text = ast.get_docstring(node)
    line = text.strip().split("\n")[0].strip() if text and text.strip() else ""
    return line if 8 <= len(line) <= 80 and line.isascii() else None


@dataclass(frozen=True)
class Asked:
    """A question about an excerpt. `evidence` is the part of the excerpt that leads to the answer, for the
    scratchpad; empty where the answer is itself a quotation."""

    excerpt: str
    wordings: tuple[str, ...]
    answer: str
    evidence: str = ""


def _named(wordings: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(wording.format(name=name) for wording in wordings)


def _of_function(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> Iterator[Asked]:
    line = _first_line(node)
    end = node.body[0].end_lineno or node.lineno
    excerpt = _excerpt(lines, node.lineno, end)
    if excerpt is None or line is None or line not in excerpt or excerpt.count("def ") != 1:
        return
    name = node.name
    given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    yield Asked(excerpt, DEFINED, name, f"def {name}")
    yield Asked(excerpt, _named(SAYS, name), line)
    if not (node.args.vararg or node.args.kwarg):
        yield Asked(excerpt, _named(ARGUMENTS, name), str(len(given)), f"{name}({', '.join(given)})")
    if given:
        yield Asked(excerpt, _named(FIRST_ARGUMENT, name), given[0], f"def {name}({given[0]}")


def _of_class(node: ast.ClassDef, lines: list[str]) -> Iterator[Asked]:
    excerpt = _excerpt(lines, node.lineno, node.body[0].end_lineno or node.lineno)
    if excerpt is None or excerpt.count("class ") != 1:
        return
    yield Asked(excerpt, CLASS, node.name, f"class {node.name}")
    if len(node.bases) == 1 and isinstance(node.bases[0], ast.Name | ast.Attribute):
        base = ast.unparse(node.bases[0])
        yield Asked(excerpt, _named(BASE, node.name), base, f"class {node.name}({base})")


def _of_imports(tree: ast.Module, lines: list[str]) -> Iterator[Asked]:
    found = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    for first, last in zip(found, found[2:5]):
        name = first.names[0].name if isinstance(first, ast.Import) else first.module
        excerpt = _excerpt(lines, first.lineno, last.end_lineno or last.lineno)
        if excerpt and name and name != "__future__" and excerpt.startswith(("import ", "from ")):
            yield Asked(excerpt, IMPORTED, name, f"{excerpt.split()[0]} {name}")


def _of_code(text: str) -> Iterator[Asked]:
    tree = _parsed(text)
    if tree is None:
        return
    lines = text.splitlines()
    yield from _of_imports(tree, lines)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _of_function(node, lines)
        elif isinstance(node, ast.ClassDef):
            yield from _of_class(node, lines)


def _of_prose(text: str) -> Iterator[Asked]:
    for match in _HEADING.finditer(text):
        title = (match["hash"] or match["under"]).strip()
        excerpt = text[match.start() :].strip()[:LONGEST_EXCERPT]
        excerpt = excerpt[: excerpt.rfind("\n")].rstrip() if "\n" in excerpt else ""
        if len(excerpt) > len(title) + 40 and excerpt.isascii() and title:
            yield Asked(excerpt, HEADING, title)


def _of_sentences(text: str) -> Iterator[Asked]:
    """About paragraphs of two sentences or more; longer ones are cut after a sentence."""
    for paragraph in text.split("\n"):
        sentences = _SENTENCE_END.split(paragraph.strip())
        while len(" ".join(sentences)) > LONGEST_EXCERPT:
            sentences.pop()
        excerpt = " ".join(sentences)
        if len(sentences) < 2 or not excerpt.isascii() or excerpt[-1] not in ".!?":
            continue
        for wordings, sentence in ((FIRST_SENTENCE, sentences[0]), (LAST_SENTENCE, sentences[-1])):
            if len(sentence) <= LONGEST_QUOTE:
                yield Asked(excerpt, wordings, sentence)
        words = re.findall(r"[A-Za-z]+", excerpt)
        for before, word in itertools.pairwise(words):
            if len(before) > 5 and words.count(before) == 1 and f"{before} {word}" in excerpt:
                yield Asked(excerpt, _named(WORD_AFTER, before), word, f"{before} {word}")
                break


def _questions(context: GeneratorContext, document: SourceDocument) -> list[ConversationDraft]:
    text = document["text"]
    if len(text) > LONGEST_DOCUMENT:
        return []
    code = str(document.get("path", "")).endswith(".py") or document.get("domain") == "code"
    # Headings where there are some: stories and articles have none.
    asked = list(_of_code(text) if code else _of_prose(text)) or ([] if code else list(_of_sentences(text)))
    context.rng.shuffle(asked)
    made = []
    asked = [a for a in asked if context.mine(f"excerpt {a.excerpt}", one_in=2)]
    for a in asked[: PER_DOCUMENT[context.split]]:
        wording = context.choose(a.wordings if context.split == "heldout" else a.wordings[:-1])
        question = f"{a.excerpt}\n\n{wording}" if context.maybe(0.75) else f"{wording}\n\n{a.excerpt}"
        reply = a.answer if " " in a.answer else f"{a.answer}."
        tools = context.tools() if context.split == "heldout" or context.maybe(0.8) else ()
        made.append(ConversationDraft(question, reply, a.answer, tools, reasoning=a.evidence or None))
    return made


def drafts(context: GeneratorContext) -> Iterator[ConversationDraft]:
    """Ends when every document has been asked about.

    Documents of the two splits may share a passage, so each excerpt, too, belongs to one split: half of those
    of the training documents and half of those of the held-out documents can be asked about.
    """
    for document in context.shuffled:
        yield from _questions(context, document)
