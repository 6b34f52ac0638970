"""Which groups are held out.

Groups are taken in the order of their hashes until each domain's held-out share is reached; a group that would
take a domain far past its share is passed over while others are left. A held-out group is held out in every
domain, so that the docstrings of a held-out module are not trained on either.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

TOO_MUCH = 1.5  # a group may take a domain to this multiple of its held-out target


@dataclass
class Split:
    """Held-out groups and, for domains of a single group, held-out documents."""

    groups: set[str] = field(default_factory=set)
    by_document: set[str] = field(default_factory=set)  # domains split by document
    ids: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)  # lines for the user

    def heldout(self, domain: str, group: str, identity: str) -> bool:
        return identity in self.ids if domain in self.by_document else group in self.groups


def _order(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def split(documents: Iterable[tuple[str, str, str, int]], share: float) -> Split:
    """documents: (domain, group, id, bytes); share: of each domain's bytes, 0 to 1. Deterministic, and the same
    in whatever order the documents come. `id` may be a family, whose documents then stay together."""
    sizes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    members: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for domain, group, identity, n_bytes in documents:
        sizes[domain][group] += n_bytes
        members[domain].append((identity, n_bytes))
    result = Split(by_document={domain for domain, groups in sizes.items() if len(groups) == 1})
    if share <= 0:
        return result
    for domain in sorted(result.by_document):
        _by_document(result, domain, members[domain], share)
    by_group = {domain: groups for domain, groups in sizes.items() if domain not in result.by_document}
    target = {domain: share * sum(groups.values()) for domain, groups in by_group.items()}
    held = dict.fromkeys(by_group, 0)
    for domain in sorted(by_group):
        hashed = sorted(by_group[domain], key=_order)
        smallest = sorted(hashed, key=by_group[domain].__getitem__)
        for order, strict in ((hashed, True), (smallest, False)):
            for group in order:
                if held[domain] >= target[domain]:
                    break
                if group in result.groups or (strict and _too_much(group, by_group, held, target)):
                    continue
                result.groups.add(group)
                for other, groups in by_group.items():
                    held[other] += groups.get(group, 0)
    for domain in sorted(by_group):
        whole = sum(by_group[domain].values())
        if abs(held[domain] / whole - share) > share / 2:
            result.notes.append(
                f"domain {domain}: {held[domain] / whole:.1%} held out where {share:.1%} was asked, "
                f"for it has {len(by_group[domain])} groups and none is divided"
            )
    return result


def _too_much(
    group: str, sizes: dict[str, dict[str, int]], held: dict[str, int], target: dict[str, float]
) -> bool:
    return any(
        groups.get(group, 0) and held[domain] + groups[group] > TOO_MUCH * target[domain]
        for domain, groups in sizes.items()
    )


def _by_document(result: Split, domain: str, documents: list[tuple[str, int]], share: float) -> None:
    if len(documents) == 1:
        result.notes.append(f"domain {domain}: a single document, so nothing of it is held out")
        return
    target = share * sum(n_bytes for _, n_bytes in documents)
    held = 0
    for identity, n_bytes in sorted(documents, key=lambda d: _order(d[0])):
        if held >= target:
            break
        result.ids.add(identity)
        held += n_bytes
    result.notes.append(f"domain {domain}: a single group, so it is split by document")
