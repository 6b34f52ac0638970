"""Where credentials stand in a text: keys and tokens by their prefixes, and assignments by name and
entropy."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

Span = tuple[int, int]

MIN_ENTROPY = 2.5  # bits per character after a known prefix: `xxxxxxxx` and `0000` are placeholders
MIN_ENTROPY_ASSIGNED = 3.5  # of a value that only the name before it makes a secret
MIN_ENTROPY_HEX = 3.0  # the same, for hexadecimal digits, which hold four bits at most

# Beginnings, and the pattern that is tried where one of them stands: a search for a literal is many times
# faster than one for a pattern. Group 1, where there is one, is what is redacted.
_TOKENS: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (literals, re.compile(rf"(?<![A-Za-z0-9_]){pattern}(?![A-Za-z0-9])"))
    for literals, pattern in (
        (("AKIA", "ASIA"), r"(?:AKIA|ASIA)[A-Z0-9]{16}"),  # Amazon Web Services
        (("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"gh[pousr]_[A-Za-z0-9]{36,255}"),  # GitHub
        (("github_pat_",), r"github_pat_[A-Za-z0-9_]{22,255}"),
        (("glpat-",), r"glpat-[A-Za-z0-9_-]{20,64}"),  # GitLab
        (("xox",), r"xox[abeoprs]-(?=[A-Za-z-]{0,64}\d)[A-Za-z0-9-]{10,255}"),  # Slack
        (("hooks.slack.com/",), r"hooks\.slack\.com/services/(T\w{8,12}/B\w{8,12}/\w{20,32})"),
        (("AIza",), r"AIza[A-Za-z0-9_-]{35}"),  # Google
        (("ya29.",), r"ya29\.[A-Za-z0-9_-]{20,512}"),
        (("sk-",), r"sk-(?=[A-Za-z_-]{0,64}\d)[A-Za-z0-9_-]{20,255}"),  # OpenAI, Anthropic and others
        (
            ("sk_live_", "sk_test_", "rk_live_", "rk_test_"),
            r"[sr]k_(?:live|test)_[A-Za-z0-9]{20,255}",
        ),  # Stripe
        (("hf_",), r"hf_[A-Za-z0-9]{34}"),  # Hugging Face
        (("npm_",), r"npm_[A-Za-z0-9]{36}"),
        (("pypi-AgE",), r"pypi-AgE[A-Za-z0-9_-]{50,512}"),
        (("SG.",), r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),  # SendGrid
        (
            ("eyJ",),
            r"eyJ[A-Za-z0-9_-]{10,4096}\.eyJ[A-Za-z0-9_-]{10,8192}\.[A-Za-z0-9_-]{10,2048}",
        ),  # JSON Web Token
        (("Bearer ", "bearer "), r"[Bb]earer (?=[A-Za-z_.~+/-]{0,64}\d)([A-Za-z0-9_.~+/-]{20,2048}=*)"),
    )
)
_BEGIN = r"-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----"
_KEY_BLOCK = re.compile(  # to its end, or, where that is cut off, as far as there are lines of base64
    rf"{_BEGIN}(?:((?:(?!-----BEGIN)[\s\S]){{64,20000}}?){_BEGIN.replace('BEGIN', 'END')}"
    rf"|((?:[\s\"'+\\]|\\n)*(?:[A-Za-z0-9+/=]{{40,}}(?:[\s\"'+\\]|\\n)*)+))"
)
_BASE64 = re.compile(r"[A-Za-z0-9+/]{40}")
_URL_PASSWORD = re.compile(r"://[^\s/:@\[\]]{1,64}:([^\s/:@\[\]\"'<>${}]{6,128})@")
_ASSIGNED = re.compile(r"[:=]>?[ \t]*[\"'`]?([A-Za-z0-9+/_.~-]{16,512}+=*)(?![ \t]*[(\[])")
_NAMED = re.compile(
    r"(?:api[_-]?key|secret|token|passw(?:or)?d|passphrase|credential"
    r"|(?:private|access|auth|account|signing)[_-]?key)[\w-]{0,16}[\"'`]?[ \t]{0,8}\Z",
    re.IGNORECASE,
)
_PUBLIC = re.compile(r"public[\w-]*\Z", re.IGNORECASE)
_HEX = re.compile(r"(?:0x)?[0-9A-Fa-f]+")
_CHAIN_ADDRESS = re.compile(r"0x[0-9A-Fa-f]{40}")  # of a contract or account, public by its nature
_WORDS = re.compile(r"(?:[A-Za-z]+\d{0,2}|\d{1,4})(?:[_./+-]+(?:[A-Za-z]+\d{0,2}|\d{1,4}))*[_./+-]*")
_DIGIT, _LETTER = re.compile(r"\d"), re.compile(r"[A-Za-z]")


def entropy(value: str) -> float:
    """Shannon entropy of the value's characters in bits per character; 0 for an empty one."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values()) if value else 0.0


def _random(value: str) -> bool:
    """Whether a value looks drawn at random: letters and digits, no words, entropy above the bound."""
    if not _DIGIT.search(value) or not _LETTER.search(value) or _CHAIN_ADDRESS.fullmatch(value):
        return False
    if _HEX.fullmatch(value):
        return entropy(value.removeprefix("0x")) >= MIN_ENTROPY_HEX
    return entropy(value) >= MIN_ENTROPY_ASSIGNED and not _WORDS.fullmatch(value)


def _candidates(text: str) -> Iterator[Span]:
    if "PRIVATE KEY" in text:
        for match in _KEY_BLOCK.finditer(text):
            body = _BASE64.search(match.group(1) or match.group(2))
            if body and entropy(body.group()) >= MIN_ENTROPY:
                yield match.span()
    for literals, pattern in _TOKENS:
        for literal in literals:
            position = text.find(literal)
            while position >= 0:
                token = pattern.match(text, position)
                if token and entropy(token.group(pattern.groups)) >= MIN_ENTROPY:
                    yield token.span(pattern.groups)
                position = text.find(literal, position + 1)
    if "://" in text and "@" in text:
        for match in _URL_PASSWORD.finditer(text):
            value = match.group(1)
            if _DIGIT.search(value) and _LETTER.search(value) and entropy(value) >= MIN_ENTROPY:
                yield match.span(1)
    for match in _ASSIGNED.finditer(text):
        floor = max(0, match.start() - 48)
        named = _NAMED.search(text, floor, match.start())
        if named and _random(match.group(1)) and not _PUBLIC.search(text, floor, named.start()):
            yield match.span(1)


def secrets(text: str) -> list[Span]:
    """Keys and tokens: AWS, GitHub, GitLab, Slack, Google, OpenAI-style, Stripe, Hugging Face, npm, PyPI and
    SendGrid by prefix and length; private key blocks; JSON Web Tokens; bearer tokens; passwords in URLs; and
    values of 16 or more characters that look random and are assigned to a name like `api_key`, `token` or
    `password`.

    Left alone: values that hold EXAMPLE or repeat few characters, words joined by signs, and blockchain
    addresses. Not found: short or wordlike passwords, secrets under other names, and secrets cut over lines.
    """
    found: list[Span] = []
    for start, end in sorted(_candidates(text), key=lambda span: (span[0], -span[1])):
        if found and start < found[-1][1]:
            continue
        if "example" not in text[start:end].lower():
            found.append((start, end))
    return found
