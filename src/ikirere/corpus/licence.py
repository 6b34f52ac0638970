"""Licences as SPDX expressions, and which of them are permissive.

What is read here is what metadata declares. A vendored file under another licence than its distribution's is
not seen; nor is a licence text that somebody changed in its substance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from license_expression import ExpressionError, LicenseWithExceptionSymbol, get_spdx_licensing

UNKNOWN = "unknown"

# Use, change and redistribution in any form with at most attribution. Share-alike and copyleft are left out.
_PERMISSIVE = """
    0BSD AFL-3.0 Apache-1.1 Apache-2.0 Artistic-2.0 BSD-1-Clause BSD-2-Clause BSD-2-Clause-Patent BSD-3-Clause
    BSD-3-Clause-Clear BSD-4-Clause BSL-1.0 BlueOak-1.0.0 CC-BY-2.0 CC-BY-3.0 CC-BY-4.0 CC-PDDC CC0-1.0 CNRI-Python
    FTL HPND ICU ISC LicenseRef-BSD LicenseRef-Public-Domain LicenseRef-scancode-public-domain Libpng MIT MIT-0
    MIT-CMU MIT-Modern-Variant MulanPSL-2.0 NCSA ODC-By-1.0 OFL-1.1 OpenSSL PDDL-1.0 PHP-3.01 PSF-2.0 PostgreSQL
    Python-2.0 Python-2.0.1 TCL Unicode-3.0 Unicode-DFS-2016 Unlicense UPL-1.0 Vim W3C WTFPL X11 Xnet ZPL-2.1 Zlib
    bzip2-1.0.6 curl libtiff zlib-acknowledgement
"""
PERMISSIVE = frozenset(_PERMISSIVE.split())

# Free to use, change and pass on, with conditions on what is passed on (share-alike, copyleft): by SPDX's families.
# Licences that forbid commercial use or changes are in none of them, nor is OPUBL-1.0 with its options.
_SHARE_ALIKE = re.compile(
    r"(CC-BY-SA-\d|A?GPL-\d|LGPL-\d|GFDL-\d|MPL-\d|EPL-\d|EUPL-\d|CDDL-1|ODbL-1|OSL-\d|CECILL-|LPPL-1|Artistic-1|Ruby$)"
)

# Trove classifiers of Python packages by their last part, lower case.
CLASSIFIERS = {
    "academic free license (afl)": "AFL-3.0",
    "apache software license": "Apache-2.0",
    "artistic license": "Artistic-2.0",
    "boost software license 1.0 (bsl-1.0)": "BSL-1.0",
    "bsd license": "LicenseRef-BSD",
    "cc0 1.0 universal (cc0 1.0) public domain dedication": "CC0-1.0",
    "eclipse public license 2.0 (epl-2.0)": "EPL-2.0",
    "gnu affero general public license v3": "AGPL-3.0-only",
    "gnu affero general public license v3 or later (agplv3+)": "AGPL-3.0-or-later",
    "gnu general public license (gpl)": "GPL-1.0-or-later",
    "gnu general public license v2 (gplv2)": "GPL-2.0-only",
    "gnu general public license v2 or later (gplv2+)": "GPL-2.0-or-later",
    "gnu general public license v3 (gplv3)": "GPL-3.0-only",
    "gnu general public license v3 or later (gplv3+)": "GPL-3.0-or-later",
    "gnu lesser general public license v2 (lgplv2)": "LGPL-2.0-only",
    "gnu lesser general public license v2 or later (lgplv2+)": "LGPL-2.0-or-later",
    "gnu lesser general public license v3 (lgplv3)": "LGPL-3.0-only",
    "gnu lesser general public license v3 or later (lgplv3+)": "LGPL-3.0-or-later",
    "gnu library or lesser general public license (lgpl)": "LGPL-2.0-or-later",
    "historical permission notice and disclaimer (hpnd)": "HPND",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mit no attribution license (mit-0)": "MIT-0",
    "mozilla public license 1.1 (mpl 1.1)": "MPL-1.1",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "public domain": "LicenseRef-Public-Domain",
    "python software foundation license": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense",
    "university of illinois/ncsa open source license": "NCSA",
    "zero-clause bsd (0bsd)": "0BSD",
    "zlib/libpng license": "Zlib",
    "zope public license": "ZPL-2.1",
}

# What people write in the License field: lower case, without "license", "the", "version" and punctuation.
FREE_TEXT = {
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache v2": "Apache-2.0",
    "apache v2.0": "Apache-2.0",
    "apache software": "Apache-2.0",
    "apache software 2.0": "Apache-2.0",
    "asl 2.0": "Apache-2.0",
    "bsd": "LicenseRef-BSD",
    "bsd like": "LicenseRef-BSD",
    "bsd style": "LicenseRef-BSD",
    "bsd 2 clause": "BSD-2-Clause",
    "2 clause bsd": "BSD-2-Clause",
    "simplified bsd": "BSD-2-Clause",
    "bsd 3 clause": "BSD-3-Clause",
    "3 clause bsd": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "modified bsd": "BSD-3-Clause",
    "revised bsd": "BSD-3-Clause",
    "expat": "MIT",
    "mit": "MIT",
    "isc": "ISC",
    "mpl": "MPL-2.0",
    "mpl 2": "MPL-2.0",
    "mozilla public 2.0": "MPL-2.0",
    "gpl": "GPL-1.0-or-later",
    "gplv2": "GPL-2.0-only",
    "gplv3": "GPL-3.0-only",
    "gpl v3": "GPL-3.0-only",
    "lgpl": "LGPL-2.0-or-later",
    "lgplv3": "LGPL-3.0-only",
    "psf": "PSF-2.0",
    "psfl": "PSF-2.0",
    "python": "PSF-2.0",
    "python software foundation": "PSF-2.0",
    "public domain": "LicenseRef-Public-Domain",
    "cc0": "CC0-1.0",
    "zlib": "Zlib",
    "zpl 2.1": "ZPL-2.1",
}

# Sentences that only one licence text has, the narrower first.
TEXTS = (
    ("apache license version 2.0", "Apache-2.0"),
    ("gnu affero general public license", "AGPL-3.0-only"),
    ("gnu lesser general public license", "LGPL-2.0-or-later"),
    ("gnu general public license", "GPL-1.0-or-later"),
    ("mozilla public license version 2.0", "MPL-2.0"),
    (
        "permission is hereby granted free of charge to any person obtaining a copy of this software and",
        "MIT",
    ),
    ("permission to use copy modify and or distribute this software for any purpose with or without", "ISC"),
    ("python software foundation license version 2", "PSF-2.0"),
    ("this is free and unencumbered software released into the public domain", "Unlicense"),
)


@lru_cache(maxsize=4096)
def _parse(expression: str):  # type: ignore[no-untyped-def]
    """The expression's tree with SPDX's spelling of each known id, or None where it is no expression."""
    try:
        return _licensing().parse(expression, simple=True)
    except (ExpressionError, ValueError):
        return None


@lru_cache(maxsize=1)
def _licensing():  # type: ignore[no-untyped-def]
    return get_spdx_licensing()


def spdx_expression(text: str) -> str | None:
    """The expression in SPDX's spelling if all its ids are SPDX's (or LicenseRef-...), else None."""
    tree = _parse(text.strip()) if text.strip() and len(text) < 300 else None
    if tree is None:
        return None
    known = _licensing().known_symbols
    for symbol in _licensing().license_symbols(tree, decompose=True):
        if symbol.key not in known and not symbol.key.startswith("LicenseRef-"):
            return None
    return str(tree.render("{symbol.key}"))


def _plain(text: str) -> str:
    words = re.sub(r"[^a-z0-9.]+", " ", text.lower()).split()
    return " ".join(w.rstrip(".") for w in words)


def from_text(text: str) -> str:
    """The licence whose text this is, by sentences only it has; `unknown` where none is found."""
    plain = _plain(text[:20_000])
    for sentence, identity in TEXTS:
        if sentence in plain:
            return identity
    if "redistribution and use in source and binary forms" in plain:
        named = "endorse or promote products" in plain
        return "BSD-3-Clause" if named else "BSD-2-Clause"
    return UNKNOWN


def spdx(text: str | None) -> str:
    """SPDX expression of an expression, a trove classifier, a common name or a licence text."""
    text = (text or "").strip()
    if not text or text.lower() == UNKNOWN:
        return UNKNOWN
    if text == "NOASSERTION":  # SPDX's own word for "nothing is declared"
        return text
    if text.startswith("License ::"):
        return CLASSIFIERS.get(text.split("::")[-1].strip().lower(), UNKNOWN)
    if expression := spdx_expression(text):
        return expression
    name = re.sub(
        r"\b(the|license|licence|licensed|version|under)\b",
        " ",
        _plain(re.sub(r"\(.*?\)", " ", text.splitlines()[0])),
    )
    return FREE_TEXT.get(" ".join(name.split())) or from_text(text)


def of_metadata(
    expression: str | None, classifiers: Iterable[str], field: str | None, texts: Iterable[str] = ()
) -> str:
    """A distribution's licence: License-Expression (PEP 639), else its classifiers, else the License field, else
    the texts of its licence files. Several classifiers are joined by AND, the stricter reading; a classifier that
    leaves the variant open ("BSD License") gives way to a field or text that names it."""
    if expression and (found := spdx(expression)) != UNKNOWN:
        return found
    named = sorted({spdx(c) for c in classifiers if c.startswith("License ::")} - {UNKNOWN})
    if named and named != ["LicenseRef-BSD"]:
        return " AND ".join(named)
    for text in (field or "", *texts):
        found = spdx(text)
        if found != UNKNOWN and (not named or "BSD" in found) and found != "LicenseRef-BSD":
            return found
    return named[0] if named else spdx(field)


@lru_cache(maxsize=4096)
def allowed(expression: str, policy: str) -> bool:
    """Whether a policy of the recipe (`data.licences`) lets a document under the expression in.

    `permissive`: attribution at most, of each side of an AND and either side of an OR. `open`: also share-alike and copyleft. `any`: everything. What nobody declares
    (unknown, NOASSERTION) and licences of neither list are let in by `any` alone.
    """
    if policy == "any":
        return True
    tree = _parse(expression.strip()) if expression.strip() else None
    return tree is not None and _allowed(tree, policy == "open")


def _allowed(node, share_alike: bool) -> bool:  # type: ignore[no-untyped-def]
    if isinstance(node, LicenseWithExceptionSymbol):
        return _allowed(node.license_symbol, share_alike)
    if arguments := getattr(node, "args", ()):
        return (any if type(node).__name__ == "OR" else all)(_allowed(a, share_alike) for a in arguments)
    key = getattr(node, "key", "")
    return key in PERMISSIVE or (share_alike and _SHARE_ALIKE.match(key) is not None)
