"""Where personal data stands in a text: one finder per kind, each from text to (start, end) spans.

Every finder looks for something cheap first ('@', a run of digits) and checks only what it finds. The spans
of one finder are in order and do not overlap. Credentials are in `pii_secrets`.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterator

import phonenumbers

Span = tuple[int, int]

# --- e-mail

# Letters of Latin scripts; in other scripts words run into the address without a blank.
_LOCAL = re.compile(r"[A-Za-z0-9\u00c0-\u024f_.%'+-]{1,64}\Z")
_LEADING = ".%'+-"  # before an address these are quotes, markup and punctuation
_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9_@(]|-[A-Za-z0-9])")
# Names that RFC 2606 and RFC 6761 set aside, and endings of image files (logo@2x.png).
_NOBODY = re.compile(
    r"(?:.*\.)?(?:example(?:\.(?:com|net|org|edu))?|test|invalid|localhost|local|png|jpe?g|gif|svg|webp)",
    re.IGNORECASE,
)
_URL_USER = re.compile(r"://[^\s/@<>\"'()]*\Z")  # what stands before the @ is the user of a URL


def emails(text: str) -> list[Span]:
    """Addresses `name@domain.tld`.

    Left alone: the example domains of RFC 2606 and 6761, users in URLs, and `git@host`. Not found:
    quoted local parts, local parts outside Latin script or with rarer signs than . _ % + - ', domains without
    a dot, and addresses that are written out ("name at domain dot org").
    """
    found: list[Span] = []
    at = text.find("@")
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1)
        local = _LOCAL.search(text, max(found[-1][1] if found else 0, at - 64), at) if domain else None
        if domain and local:
            name = local.group().lstrip(_LEADING)
            known = (
                name == "git"
                or _NOBODY.fullmatch(domain.group())
                or _URL_USER.search(text, max(0, at - 128), at)
            )
            if name and not known:
                found.append((at - len(name), domain.end()))
        at = text.find("@", at + 1)
    return found


# --- IP addresses

MIN_OCTET = 32  # four smaller numbers are a version or a section; of all addresses 0.02% are such
MIN_GROUPS = 3  # of a version 6 address: `2006::` is a year before a code block in reStructuredText
_DOTS = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d")  # begins with a literal, so that it is searched for fast
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\w|\.\d)")
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
# Global unicast begins with 2 or 3, which keeps `std::` and times of day out.
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{1,34}(?<!(?<!:):)(?!\w|:\w)")
_VERSION = re.compile(
    r"(?:\b(?:v|ver|version|release|rev|build|section|sec|chapter|figure|fig|table|theorem|lemma|appendix"
    r"|clause)\.?|[<>=!~]=|[~^§]|[A-Za-z][/_-])[ \t]*\Z",
    re.IGNORECASE,
)
_DOCUMENTATION = tuple(ipaddress.ip_network(network) for network in ("2001:db8::/32", "3fff::/20"))


def addresses(text: str) -> list[Span]:
    """IP addresses, version 4 and 6, that are globally routable, for only those can point to somebody.

    Left alone: private, loopback, link-local, documentation, multicast and reserved ranges; four numbers
    after a word or sign that makes them a version or a section; four numbers below 32, which nearly always
    are one; and version 6 addresses with fewer than three groups.
    """
    found = []
    for match in _IPV4.finditer(text) if _DOTS.search(text) else ():
        value = match.group()
        version = max(map(int, value.split("."))) < MIN_OCTET or _VERSION.search(
            text, max(0, match.start() - 12), match.start()
        )
        if not version and _routable(value):
            found.append(match.span())
    for match in _IPV6.finditer(text) if _COLONS.search(text) else ():
        groups = sum(map(bool, match.group().split(":")))
        if groups >= MIN_GROUPS and _routable(match.group()):
            found.append(match.span())
    return sorted(found)


def _routable(value: str) -> bool:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    if address.is_multicast or not address.is_global:
        return False
    return not any(address.version == network.version and address in network for network in _DOCUMENTATION)


# --- cards and telephones: both are looked for where digits run

_RUN = re.compile(r"\d[\d ().-]{5,}\d")


@functools.lru_cache(maxsize=1)  # cards and telephones look at the same text one after the other
def _runs(text: str) -> tuple[Span, ...]:
    """Runs of digits and the signs that stand between them, of seven or more characters."""
    return tuple(run.span() for run in _RUN.finditer(text))


def _within_runs(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Matches that overlap a run of digits, in order, each beginning after the last one's end."""
    last = 0
    for start, end in _runs(text):
        # A sign may stand before the run, and what follows it is looked at too.
        for match in pattern.finditer(text, max(last, start - 2), min(len(text), end + 3)):
            last = match.end()
            yield match


_CARD = re.compile(
    r"(?<![\w.,+-])\d{4}(?:\d{9,15}|(?P<sep>[ -])"
    r"(?:(?:\d{4}(?P=sep)){2}\d{4}(?:(?P=sep)\d{3})?|\d{6}(?P=sep)\d{4,5}))"
    r"(?!\w|[.,-]\d)"
)
# Prefixes and lengths of Visa, Mastercard, American Express, Discover, Diners Club and JCB.
_ISSUER = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|6(?:011|4[4-9]\d|5\d\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}"
)


def luhn(digits: str) -> bool:
    """Whether the last digit is the checksum of the others (ISO/IEC 7812-1)."""
    total = sum(map(int, digits[-1::-2]))
    return (total + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])) % 10 == 0


def cards(text: str) -> list[Span]:
    """Payment card numbers: issuer's prefix and length, grouped as on a card or not at all, with the right
    checksum.

    Test numbers of payment providers count too. One in ten other numbers with such a prefix passes the
    checksum.
    """
    found = []
    for match in _within_runs(_CARD, text):
        digits = match.group().replace(" ", "").replace("-", "")
        if digits.isascii() and _ISSUER.fullmatch(digits) and luhn(digits):
            found.append(match.span())
    return found


_PHONE = re.compile(
    r"(?<![\w.+-])(?<!\d[,/:])(?:"
    r"(?P<international>(?:\+|00)[1-9][\d ().-]{6,20}\d)"
    r"|(?P<british>(?:\(0[1-9]\d{1,4}\)|0[1-9]\d{1,4})[ -]\d{3,4}(?:[ -]?\d{3,4})?)"
    r"|(?P<american>(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[.-]\d{4}"
    r"|(?<!\d )[2-9]\d\d [2-9]\d\d \d{4}(?! \d))"  # in a table of numbers it is something else
    r")(?!\w|[.-]\d)"
)
# Numbers set aside for films and manuals: 555-01xx in North America, Ofcom's for drama in Britain.
_FICTION = re.compile(r"1\d{3}55501\d\d|44(?:2079460\d{3}|1632960\d{3}|7700900\d{3}|[1-9]\d{2}4960\d{3})")
_REGION = {"international": None, "british": "GB", "american": "US"}


def phones(text: str) -> list[Span]:
    """Telephone numbers: international ones with + or 00, American and British ones as they are written at
    home, each checked against the numbering plans of phonenumbers.

    Not found: other countries' numbers in their national form, and bare runs of digits. Numbers set aside for
    fiction are left alone.
    """
    found = []
    for match in _within_runs(_PHONE, text):
        end = match.end()
        region = _REGION[match.lastgroup or "international"]
        # Another number may follow the first: leave out the last group of digits until one is valid.
        while end - match.start() >= 8:
            value = text[match.start() : end]
            if _in_a_plan(value, region):
                found.append((match.start(), end))
                break
            if region is not None:
                break
            shorter = value.rstrip("0123456789").rstrip(" ().-")
            end = match.start() + len(shorter)
    return found


def _in_a_plan(value: str, region: str | None) -> bool:
    if value.startswith("00"):
        value = "+" + value[2:]
    try:
        number = phonenumbers.parse(value, region)
    except phonenumbers.NumberParseException:
        return False
    if not phonenumbers.is_valid_number(number):
        return False
    return not _FICTION.fullmatch(f"{number.country_code}{number.national_number}")
