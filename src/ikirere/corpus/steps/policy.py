"""Documents with too many words of a list are dropped; a scorer of one's own can be put beside the list."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from ikirere.common.files import file_sha256
from ikirere.corpus.readers.files import expand
from ikirere.corpus.steps.prose import code_domains
from ikirere.corpus.steps.step import DROPPED, LedgerBuilder, Outcome, StepContext, filtered, in_domains
from ikirere.errors import UserError

SHIPPED = Path(__file__).with_name("policy_words.txt")
UNNAMED = "listed"  # category of the words that stand before any heading
SCORES = pa.schema(
    {
        "id": pa.string(),
        "domain": pa.string(),
        "matches": pa.int64(),
        "share": pa.float64(),
        "score": pa.float64(),
    }
)

_WORD = re.compile(r"\w+")  # apostrophes and hyphens part words, in the list as in the text


@dataclass
class WordList:
    """Words and phrases by category. `phrases` maps a phrase's first word to (its words, its category)."""

    words: dict[str, str] = field(default_factory=dict)
    phrases: dict[str, list[tuple[tuple[str, ...], str]]] = field(default_factory=dict)

    def count(self, text: str) -> tuple[Counter[str], int, int]:
        """(matches per category, words that are part of a match, all words of the text)."""
        words = _WORD.findall(text.lower())
        matches: Counter[str] = Counter()
        matched = 0
        present = set(words)
        listed = present & self.words.keys()
        if listed:
            counts = Counter(word for word in words if word in listed)
            for word, n in counts.items():
                matches[self.words[word]] += n
                matched += n
        begun = present & self.phrases.keys()
        if begun:
            for position, word in enumerate(words):
                if word not in begun:
                    continue
                for phrase, category in self.phrases[word]:
                    if tuple(words[position : position + len(phrase)]) == phrase:
                        matches[category] += 1
                        matched += len(phrase)
        return matches, matched, len(words)


def read_words(path: Path, key: str) -> WordList:
    """A word list: one word or phrase per line, `# ...` a comment, `[name]` the category of the lines below
    it.

    key: the recipe's key that named the file, for messages. Raises UserError where it cannot be read or is
    empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{key}: {path} cannot be read as UTF-8 text ({error}); name a file with a word per line"
        ) from None
    found = WordList()
    phrases: defaultdict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)
    category = UNNAMED
    for line in lines:
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            category = line[1:-1].strip() or UNNAMED
            continue
        words = tuple(_WORD.findall(line.lower()))
        if len(words) == 1:
            found.words.setdefault(words[0], category)
        elif words and (words, category) not in phrases[words[0]]:
            phrases[words[0]].append((words, category))
    found.phrases = dict(phrases)
    if not found.words and not found.phrases:
        raise UserError(f"{key}: {path} holds no words; give one word or phrase per line")
    return found


class PolicyFilter:
    """Drops documents in which words of a list are too frequent (reason `policy`).

    A document goes where the list is matched at least `min_matches` times and the matched words are more than
    `max_share` of all its words. The ledger names the category and the counts, never the words; its excerpt
    is empty.

    `scorer` takes a classifier: a function from text to a probability of breaking the policy,
    above `max_score` of which a document goes too. None is shipped. A subclass sets it, and a line of the
    registry names the subclass; the function must be importable, deterministic and cheap to pickle.

    Not covered: words in disguise (`p0rn`), other languages, and texts that are harmful in plain words.
    """

    name: ClassVar[str] = "policy"
    scorer: ClassVar[Callable[[str], float] | None] = None
    max_score: ClassVar[float] = 0.5

    def __init__(self, context: StepContext) -> None:
        settings = context.data.policy
        if settings is None:
            raise UserError("data.policy: the step needs its section")
        path = SHIPPED
        if settings.words is not None:
            path = expand(settings.words, "data.policy.words", context.recipe_folder)
        self.words = read_words(path, "data.policy.words")
        self.sha256 = file_sha256(path)
        self.max_share, self.min_matches = settings.max_share, settings.min_matches
        self.domains = settings.domains
        self.but = code_domains(context.data)

    def prepare(self, parts: Sequence[Path]) -> None:
        """Nothing to make ready."""

    def fingerprint(self) -> str:
        """Hash of the word list, and the scorer's name."""
        scorer = type(self).scorer
        named = f"{scorer.__module__}:{scorer.__qualname__} {self.max_score}" if scorer is not None else ""
        return f"{self.sha256} {named}"

    def __call__(self, table: pa.Table) -> Outcome:
        ledger = LedgerBuilder(self.name)
        keep: list[bool] = []
        scores: list[dict[str, Any]] = []
        scorer = type(self).scorer
        columns = table.select(["id", "text", "path", "source", "domain", "licence"])
        for row, looked_at in zip(columns.to_pylist(), in_domains(table, self.domains, self.but)):
            if not looked_at:
                keep.append(True)
                continue
            matches, matched, words = self.words.count(row["text"])
            total = matches.total()
            share = matched / words if words else 0.0
            score = scorer(row["text"]) if scorer is not None else None
            by_words = total >= self.min_matches and share > self.max_share
            by_score = score is not None and score > self.max_score
            keep.append(not by_words and not by_score)
            scores.append(
                {"id": row["id"], "domain": row["domain"], "matches": total, "share": share, "score": score}
            )
            if not keep[-1]:
                detail: dict[str, Any] = {"matches": total, "share": round(share, 5), "words": words}
                if matches:
                    detail["categories"] = dict(sorted(matches.items()))
                if score is not None:
                    detail["score"] = round(score, 4)
                ledger.add(row, DROPPED, "policy", detail=detail)
                ledger.rows[-1]["excerpt"] = ""  # it would quote what the detail takes care not to
        return Outcome(
            filtered(table, keep), ledger.table(), {"scores": pa.Table.from_pylist(scores, schema=SCORES)}
        )
