"""Personal data and credentials: what is found, what is left alone, and that no value is left."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import string
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.corpus.document import DOCUMENT_SCHEMA, Document
from ikirere.corpus.steps import make_step
from ikirere.corpus.steps.pii import FINDERS, PLACEHOLDERS, Redactor, redact
from ikirere.corpus.steps.pii_patterns import luhn
from ikirere.corpus.steps.pii_secrets import entropy
from ikirere.corpus.steps.step import StepContext
from ikirere.recipe.data import Data
from ikirere.recipe.hygiene import Pii
from ikirere.tokenizer.specials import SPECIALS


def noise(n: int, alphabet: str = string.ascii_letters + string.digits, salt: str = "") -> str:
    """Letters that look drawn at random and are the same in every run; the first 16 hold a digit and a letter."""
    drawn = b"".join(hashlib.sha256(f"{salt}{i}".encode()).digest() for i in range(n // 32 + 1))
    return ("k7" if "k" in alphabet else "7F") + "".join(alphabet[b % len(alphabet)] for b in drawn)[: n - 2]


TOKEN = noise(64)
KEY_BODY = "\n".join(
    base64.b64encode(hashlib.sha512(str(i).encode()).digest())[:64].decode() for i in range(8)
)
BLOCK = f"-----BEGIN RSA PRIVATE KEY-----\n{KEY_BODY}\n-----END RSA PRIVATE KEY-----"
JWT = f"eyJ{TOKEN[:20]}.eyJ{TOKEN[5:45]}.{TOKEN[:43]}"

# Assembled from pieces, so that no scanner of sources takes them for real ones.
FOUND = {
    "email": [
        "jane.doe@mail.org", "o'brien+lists@sub.domain.co.uk", "x_1%y@a-b.io", "JOSÉ@correo.mx", "info@bücher.de",
    ],
    "phone": [
        "+1 650-253-0000", "(650) 253-0000", "650-253-0000", "650.253.0000", "650 253 0000", "1-650-253-0000",
        "+44 20 7219 4272", "+44 (0)20 7219 4272", "0044 20 7219 4272", "020 7219 4272", "(020) 7219 4272",
        "07911 123456", "+49 30 227 32152", "+250 788 123 456", "+81-3-3580-3311",
    ],
    "ip": ["66.102.7.147", "165.225.50.94", "8.8.148.250", "2001:4860:4860::8888", "2a00:1450:4001:81b::200e"],
    "card": [
        "4111111111111111", "4111 1111 1111 1111", "4111-1111-1111-1111", "5500005555555559", "2223000048400011",
        "378282246310005", "3782 822463 10005", "6011000990139424", "30569309025904", "3530111333300000",
    ],
    "secret": [
        "AKIA" + noise(16, string.ascii_uppercase + string.digits), "ghp_" + TOKEN[:36], "github_pat_" + TOKEN[:50],
        "glpat-" + TOKEN[:20], "xoxb-" + noise(12, string.digits) + "-" + TOKEN[:24], "AIza" + TOKEN[:35],
        "sk-" + TOKEN[:48], "sk-proj-" + TOKEN[:40], "sk_live_" + TOKEN[:24], "hf_" + TOKEN[:34], "npm_" + TOKEN[:36],
        "ya29." + TOKEN[:60], "SG." + TOKEN[:22] + "." + TOKEN[:43], JWT, BLOCK,
    ],
}  # fmt: skip
VALUES = [(kind, value) for kind, values in FOUND.items() for value in values]

# Where the value is only a part of what makes it a secret.
IN_CONTEXT = [
    ('api_key = "{}"', TOKEN[:32]),
    ("API_KEY={}", TOKEN[:32]),
    ('  "clientSecret": "{}",', TOKEN[:24]),
    ("aws_secret_access_key = {}", TOKEN[:30] + "/" + TOKEN[30:39]),
    ("password: '{}'", "Tr0ub4dor-and-3xtra"),
    ("auth_token => '{}'", noise(40, "0123456789abcdef")),
    ("Authorization: Bearer {}", TOKEN[:40]),
    ("postgres://admin:{}@db.host.net/app", "s3cr3tPassw0rd"),
    ("https://hooks.slack.com/services/{}", f"T{TOKEN[:9].upper()}/B{TOKEN[:9].upper()}/{TOKEN[:24]}"),
    ('key = """{}"""', BLOCK),
    ("{}\nand the rest is missing", "-----BEGIN PRIVATE KEY-----\n" + KEY_BODY),
]

LEFT_ALONE = [
    "user@example.com", "a@b.example.org", "root@localhost", "admin@host.test", "git@github.com:owner/name.git",
    "@decorator.name", "a@b.reshape(2)", "logo@2x.png", "react@18.2.0", "see https://medium.com/@someone/text",
    "127.0.0.1", "0.0.0.0", "10.1.2.3", "192.168.178.40", "172.16.99.99", "192.0.2.44", "198.51.100.7", "203.0.113.9",
    "169.254.169.254", "255.255.255.0", "224.0.100.251", "1.2.3.4", "version 120.0.60.129", "v4.120.33.7", "==66.102.7.147",
    "Chrome/66.102.7.147", "Section 66.4.12.100", "1.3.6.1.4.1.311", "256.300.1.1", "066.102.7.1471",
    "::1", "fe80::1", "2001:db8::1", "std::string", "12:30:45:00", "2006::", "dead::beef", "ab:cd:ef:01:23:45",
    "4111111111111112", "1234 5678 9012 3456", "0.4111111111111111", "41111111111111111111", "4111 11111111 1111",
    "1-800-555-0199", "(212) 555-0123", "020 7946 0958", "2021-03-04 12:30:45", "3.14159 26535 89793", "978-0-19-853453-1",
    "200 300 4000 500 600 7000", "650-253-00001", "1650-253-0000.5", "pages 123-456-7890a",
    'api_key = "YOUR_API_KEY_GOES_HERE"', "token = get_token_from_request2(x)", "secret: xxxxxxxxxxxxxxxxxxxxxxx1",
    "password = self.settings.database.password1", "publicKeyToken=6595b64144ccf1df",
    "token: 0xC02aaA39b223FE8D0A0e5C4F27eAD9083C756Cc2", "checksum = " + noise(64, "0123456789abcdef"),
    "AKIAIOSFODNN7EXAMPLE", "AKIAAAAAAAAAAAAAAAAA", "ghp_" + "x" * 36, "risk-averse-people-do-not-like-this-one",
    "Bearer certificate-based-authentication", "xoxo-hugs-and-kisses", "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
    "A file with -----BEGIN PRIVATE KEY----- at its top holds a key, and whoever has it can sign in your name.",
    "ftp://user:password@host.net",
]  # fmt: skip


def step(seed: int = 0, **keys: Any) -> Redactor:
    return Redactor(context(seed, **keys))


def context(seed: int = 0, **keys: Any) -> StepContext:
    sources = [{"kind": "local", "name": "here", "path": "here", "domain": "docs"}]
    return StepContext(Data.model_validate({"sources": sources, "pii": keys}), Path(), Path(), seed)


def table(*rows: dict[str, Any]) -> pa.Table:
    plain = {"source": "here", "group": "g", "path": "p", "domain": "docs", "licence": "MIT"}
    return pa.Table.from_pylist([Document(**(plain | row)).row() for row in rows], schema=DOCUMENT_SCHEMA)


@pytest.mark.parametrize(("kind", "value"), VALUES)
@pytest.mark.parametrize("around", ["{}", "Ask {}, please.", "({})", "<{}>", "x: {}\n", "«{}»"])
def test_a_value_is_found_whole(kind: str, value: str, around: str) -> None:
    text = around.format(value)
    redacted, taken = redact(text)
    assert [one.kind for one in taken] == [kind]
    assert redacted == around.format(PLACEHOLDERS[kind])
    assert text[taken[0].start : taken[0].end] == value


@pytest.mark.parametrize(("around", "value"), IN_CONTEXT)
def test_a_secret_is_known_by_what_stands_around_it(around: str, value: str) -> None:
    redacted, taken = redact(around.format(value))
    assert redacted.rstrip("\n") == around.format("[SECRET]").replace("]\nand", "]and").rstrip("\n")
    assert [one.kind for one in taken] == ["secret"]


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_examples_versions_and_lookalikes_are_left_alone(text: str) -> None:
    assert redact(f"Take {text} there.") == (f"Take {text} there.", [])


def test_neighbours_are_each_found() -> None:
    text = (
        "650-253-0000/650-253-0001, a@b.org;c@d.org 4111 1111 1111 1111 +1 650 253 0000 2024, 66.102.7.147:80"
    )
    assert redact(text)[0] == "[PHONE]/[PHONE], [EMAIL];[EMAIL] [CARD] [PHONE] 2024, [IP]:80"


def test_what_stands_beside_a_placeholder_is_looked_at_again() -> None:
    text = "a@b.org+16502530000, then 66.102.7.147"
    redacted, taken = redact(text)
    assert redacted == "[EMAIL][PHONE], then [IP]"
    assert [text[one.start : one.end] for one in taken] == ["a@b.org", "+16502530000", "66.102.7.147"]


def test_kinds_can_be_chosen() -> None:
    text = " ".join(values[0] for values in FOUND.values())
    for kind, values in FOUND.items():
        assert redact(text, [kind])[0] == text.replace(values[0], PLACEHOLDERS[kind])


def test_finders_and_placeholders_are_those_of_the_recipe_and_no_special_tokens() -> None:
    assert set(FINDERS) == set(PLACEHOLDERS) == set(Pii().kinds)
    assert not set(PLACEHOLDERS.values()) & set(SPECIALS)
    together = "".join(PLACEHOLDERS.values())
    assert redact(together) == (together, [])


@settings(derandomize=True)
@given(st.integers(0, 10**18))
def test_the_checksum_is_luhns(number: int) -> None:
    digits = str(number)
    doubled = [int(d) * (2 if i % 2 else 1) for i, d in enumerate(reversed(digits))]
    assert luhn(digits) == (sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0)
    assert sum(luhn(digits + str(last)) for last in range(10)) == 1


def test_entropy_is_in_bits_per_character() -> None:
    assert (entropy(""), entropy("aaaa"), entropy("abab"), entropy("abcd")) == (0, 0, 1, 2)


@settings(deadline=None, derandomize=True)
@given(st.text(), st.text(), st.lists(st.sampled_from(VALUES), min_size=1, max_size=4))
def test_planted_values_are_gone_from_any_text(
    before: str, after: str, planted: list[tuple[str, str]]
) -> None:
    text = "\n".join([before, *(value for _, value in planted), after])
    redacted, taken = redact(text)
    for kind, value in planted:
        assert value not in redacted
        assert (kind, value) in [(one.kind, text[one.start : one.end]) for one in taken]


CALM = st.text(alphabet=string.ascii_lowercase + string.punctuation.replace("@", "") + " \n\täé汉ع")


@settings(deadline=None, derandomize=True)
@given(CALM)
def test_text_without_digits_and_at_signs_is_unchanged(text: str) -> None:
    assert redact(text) == (text, [])


FRAGMENTS = [
    *"@.-:+/=()[] \n\"'0123456789",
    "a",
    "com",
    "org",
    "token",
    "api_key",
    "ghp_",
    "sk-",
    "://",
    "eyJ",
    "+1",
    "::",
]
WILD = st.lists(
    st.one_of(st.sampled_from(FRAGMENTS + [v for _, v in VALUES]), st.text(max_size=3)), max_size=40
)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(WILD.map("".join))
def test_a_second_pass_changes_nothing_and_the_log_tells_the_truth(text: str) -> None:
    redacted, taken = redact(text)
    assert redact(redacted) == (redacted, [])
    pieces, done = [], 0
    for kind, start, end in taken:
        assert done <= start < end <= len(text)
        pieces += [text[done:start], PLACEHOLDERS[kind]]
        done = end
    assert "".join(pieces) + text[done:] == redacted


def test_ledger_and_log_say_everything_but_the_value() -> None:
    rows = [{"text": f"Write to {FOUND['email'][0]} or {FOUND['email'][1]}."}, {"text": "Nothing here."}]
    rows += [{"text": f"é {value} and {FOUND['email'][0]}"} for kind, value in VALUES if kind != "email"]
    given_rows = table(*rows)
    outcome = step()(given_rows)
    assert outcome.kept.schema == DOCUMENT_SCHEMA
    assert outcome.kept.column("id").equals(given_rows.column("id"))
    assert outcome.kept.column("text").to_pylist()[:2] == ["Write to [EMAIL] or [EMAIL].", "Nothing here."]

    first, *others = outcome.ledger.to_pylist()
    assert (first["action"], first["reason"], json.loads(first["detail"])) == ("changed", "pii", {"email": 2})
    assert len(others) == len(rows) - 2
    log = outcome.logs["redactions"].to_pylist()
    assert len(log) == 2 + 2 * len(others)
    assert {row["kind"] for row in log} == set(FOUND)
    [start, end] = log[0]["start"], log[0]["end"]
    assert rows[0]["text"][start:end] == FOUND["email"][0]

    said = str(outcome.ledger.to_pylist()) + str(log) + str(outcome.kept.column("text").to_pylist())
    for _, value in VALUES:
        assert value not in said


def test_hashes_are_equal_for_equal_values_of_one_seed() -> None:
    rows = table({"text": "a@b.org, c@d.org"}, {"text": "c@d.org again"})

    def hashes(seed: int) -> list[str]:
        return [str(h) for h in step(seed)(rows).logs["redactions"].column("hash").to_pylist()]

    first, second, again = hashes(1)
    assert first != second == again
    assert hashes(1) == [first, second, again]
    assert not set(hashes(2)) & {first, second}
    assert hashlib.sha256(b"c@d.org").hexdigest()[:32] != second


def test_only_the_domains_named_are_looked_at() -> None:
    rows = table({"text": "a@b.org", "domain": "code"}, {"text": "c@d.org", "domain": "docs"})
    assert step()(rows).kept.column("text").to_pylist() == ["[EMAIL]", "[EMAIL]"]
    assert step(domains=["docs"])(rows).kept.column("text").to_pylist() == ["a@b.org", "[EMAIL]"]


def test_parts_do_not_matter_and_the_step_can_be_sent() -> None:
    made = make_step("pii", context())
    assert made is not None
    made.prepare([])
    made = pickle.loads(pickle.dumps(made))
    rows = table(*({"text": f"{n}: {value}"} for n, (_, value) in enumerate(VALUES)), {"text": "none"})
    whole, parts = made(rows), [made(rows.slice(start, 7)) for start in range(0, len(rows), 7)]
    assert whole.kept.equals(pa.concat_tables([part.kept for part in parts]).combine_chunks())
    assert whole.ledger.equals(pa.concat_tables([part.ledger for part in parts]))
    assert whole.logs["redactions"].equals(pa.concat_tables([part.logs["redactions"] for part in parts]))
    assert made.fingerprint().startswith("phonenumbers ")
    assert len(made(rows.slice(0, 0)).kept) == 0


@pytest.mark.skipif("IKIRERE_DATA" not in os.environ, reason="IKIRERE_DATA names no mirror of corpora")
def test_authors_of_real_documents_lose_their_addresses() -> None:
    path = Path(os.environ["IKIRERE_DATA"]) / "corpus" / "edu" / "python+peps.parquet"
    texts = pq.read_table(path, columns=["text"])["text"].to_pylist()[::4]
    authors = [text for text in texts if "\nAuthor:" in text and "@python.org>" in text]
    assert len(authors) > 20
    for text in authors:
        assert "@python.org>" not in redact(text)[0].split("\n\n")[0]
