"""Layer patterns, for mixers and for feed-forwards alike.

A pattern is items separated by white space. An item is NAME or NAME*COUNT: NAME is one of the accepted names, COUNT a whole
number from 1 to 999 without leading zeros. The items, each COUNT times, make one period. A model repeats the period to
its depth and cuts it there: `kda*3 full` in 6 layers is kda kda kda full kda kda.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_ITEM = re.compile(r"([^\s*]+)(?:\*([1-9][0-9]{0,2}))?")


def period(key: str, kind: str, pattern: str, accepted: Collection[str]) -> tuple[str, ...]:
    """The names of one period: `kda*3 full` -> (kda, kda, kda, full). kind: what the names are, for messages. Raises
    ValueError, which begins with `key`."""
    names: list[str] = []
    for item in pattern.split():
        match = _ITEM.fullmatch(item)
        if match is None:
            raise ValueError(
                f"{key} {pattern!r}: {item!r} is not NAME or NAME*COUNT, COUNT from 1 to 999, as in 'kda*3 full'"
            )
        if match[1] not in accepted:
            raise ValueError(
                f"{key} {pattern!r}: {match[1]!r} is no {kind}; accepted are {', '.join(accepted)}"
            )
        names += [match[1]] * int(match[2] or 1)
    if not names:
        raise ValueError(f"{key} is empty; write one or more of {', '.join(accepted)}")
    return tuple(names)


def expand(key: str, kind: str, pattern: str, accepted: Collection[str], depth: int) -> tuple[str, ...]:
    """The name of each of `depth` layers. Raises ValueError as `period` does."""
    names = period(key, kind, pattern, accepted)
    return tuple(names[i % len(names)] for i in range(depth))
