"""What is held out: in which order groups are taken, where they stop, who is passed over, and what is noted."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.corpus.build.group_split import Split, split

Document = tuple[str, str, str, int]


def by_hash(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def groups_of(sizes: dict[str, int], domain: str = "code") -> list[Document]:
    """One document per group."""
    return [(domain, group, f"{domain}/{group}", size) for group, size in sizes.items()]


NAMES = [f"package-{i}" for i in range(20)]
ORDER = by_hash(NAMES)


@pytest.mark.parametrize(
    ("share", "held"),
    [(0.049, 1), (0.05, 1), (0.07, 2), (0.2, 4), (0.24, 5), (0.5, 10), (1.0, 20), (0.0, 0)],
)
def test_groups_are_taken_in_the_order_of_their_hashes_until_the_share_is_reached(
    share: float, held: int
) -> None:
    found = split(groups_of(dict.fromkeys(NAMES, 100)), share)
    assert found.groups == set(ORDER[:held])
    assert not found.ids and not found.by_document and not found.notes


def test_a_group_far_larger_than_what_is_asked_is_passed_over_while_others_are_left() -> None:
    sizes = dict.fromkeys(NAMES, 100) | {ORDER[0]: 2000}
    found = split(groups_of(sizes), 0.1)  # 390 of 3,900
    assert found.groups == set(ORDER[1:5]) and not found.notes


def test_a_group_may_reach_half_more_than_what_is_asked_and_not_a_byte_beyond() -> None:
    """Of 10,000 bytes 1,000 are asked."""
    for size, taken in ((1500, True), (1501, False)):
        sizes = dict.fromkeys(NAMES, 100) | {ORDER[0]: size, ORDER[-1]: 10_000 - 1800 - size}
        found = split(groups_of(sizes), 0.1)
        assert (ORDER[0] in found.groups) is taken
        assert found.groups == ({ORDER[0]} if taken else set(ORDER[1:11]))


def test_what_is_held_already_counts_for_the_bound() -> None:
    """400 are asked of 4,000; after the first three of 100, a group of 301 would make 601."""
    for size, taken in ((300, True), (301, False)):
        sizes = dict.fromkeys(NAMES, 100) | {ORDER[3]: size}
        sizes[ORDER[-1]] = 4000 - 1800 - size
        found = split(groups_of(sizes), 0.1)
        assert found.groups == (set(ORDER[:4]) if taken else {*ORDER[:3], ORDER[4]})


def test_where_all_groups_are_too_large_the_smallest_is_taken_and_the_note_says_so() -> None:
    found = split(groups_of({"a": 500, "b": 300, "c": 200}), 0.05)
    assert found.groups == {"c"}
    assert found.notes == [
        "domain code: 20.0% held out where 5.0% was asked, for it has 3 groups and none is divided"
    ]


@pytest.mark.parametrize(("share", "noted"), [(0.13, True), (0.134, False), (0.19, False)])
def test_a_note_where_more_than_half_of_the_share_is_too_much(share: float, noted: bool) -> None:
    """One of five equal groups is 20%."""
    found = split(groups_of(dict.fromkeys("vwxyz", 100)), share)
    assert len(found.groups) == 1 and bool(found.notes) is noted


def test_a_group_is_held_out_in_every_domain() -> None:
    """The first domain takes its groups; they count in the second, which needs one more of its own."""
    shared = dict.fromkeys(NAMES, 100)
    docs = {f"guide-{i}": 100 for i in range(20)}
    documents = groups_of(shared, "code") + groups_of(shared, "docs") + groups_of(docs, "docs")
    found = split(documents, 0.1)  # 200 of code, 400 of docs
    first = ORDER[:2]
    further = [name for name in by_hash([*shared, *docs]) if name not in first]
    # Groups of code would take that domain beyond 300; one more of them fits.
    allowed_of_code, held, expected = 1, 200, set(first)
    for name in further:
        if held >= 400:
            break
        if name in shared:
            if not allowed_of_code:
                continue
            allowed_of_code -= 1
        expected.add(name)
        held += 100
    assert found.groups == expected and not found.notes
    assert found.heldout("docs", ORDER[0], "any") and found.heldout("code", ORDER[0], "any")
    assert not found.heldout("code", ORDER[-1], "any")


def test_a_group_that_another_domain_could_not_bear_is_passed_over() -> None:
    """The first group is 1% of code and all but a little of docs."""
    documents = groups_of(dict.fromkeys(NAMES, 100), "code") + groups_of(
        {ORDER[0]: 900, "other": 100}, "docs"
    )
    found = split(documents, 0.1)
    assert found.groups == {*ORDER[1:3], "other"}


IDS = [f"page-{i}" for i in range(10)]


@pytest.mark.parametrize(("share", "held"), [(0.1, 1), (0.11, 2), (0.35, 4)])
def test_a_domain_of_one_group_is_split_by_document(share: float, held: int) -> None:
    found = split([("web", "site", page, 50) for page in IDS], share)
    assert found.ids == set(by_hash(IDS)[:held]) and not found.groups
    assert found.by_document == {"web"}
    assert found.notes == ["domain web: a single group, so it is split by document"]
    assert found.heldout("web", "site", by_hash(IDS)[0]) and not found.heldout(
        "web", "site", by_hash(IDS)[-1]
    )


def test_documents_are_taken_until_the_very_byte_is_reached() -> None:
    assert len(split([("web", "site", page, 1) for page in IDS], 0.2).ids) == 2


def test_of_a_single_document_nothing_is_held_out() -> None:
    found = split([("web", "site", "page", 50), *groups_of(dict.fromkeys(NAMES, 100))], 0.1)
    assert not found.ids and found.groups == set(ORDER[:2])
    assert found.notes == ["domain web: a single document, so nothing of it is held out"]


def test_domains_are_noted_in_the_order_of_their_names() -> None:
    documents = [
        *(("web", "site", page, 1) for page in IDS), *groups_of({"p": 9, "q": 8}, "maths"),
        *groups_of({"r": 1, "s": 1}, "code"), ("books", "one", "whole", 5),
    ]  # fmt: skip
    notes = split(documents, 0.1).notes
    assert [note.split(":")[0] for note in notes] == [
        "domain books", "domain web", "domain code", "domain maths",
    ]  # fmt: skip
    assert "50.0% held out where 10.0%" in notes[2] and "47.1% held out where 10.0%" in notes[3]
    assert all("it has 2 groups" in note for note in notes[2:])


def test_no_share_holds_nothing_out_and_notes_nothing() -> None:
    found = split([("web", "site", page, 1) for page in IDS] + groups_of({"a": 1, "b": 1}), 0)
    assert found == Split(by_document={"web"})
    assert not found.heldout("web", "site", IDS[0]) and not found.heldout("code", "a", "x")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("uvwxyz"), st.integers(0, 30).map(str), st.integers(1, 99)),
        min_size=1, max_size=40, unique_by=lambda d: d[2],
    ),
    st.sampled_from([0.05, 0.2, 0.5]),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_every_domain_reaches_its_share_in_whatever_order_documents_come(
    documents: list[Document], share: float, rng: object
) -> None:
    found = split(documents, share)
    for domain in {d[0] for d in documents}:
        own = [d for d in documents if d[0] == domain]
        held = sum(d[3] for d in own if found.heldout(*d[:3]))
        assert held >= share * sum(d[3] for d in own) or len(own) == 1
        if domain not in found.by_document:
            assert all(found.heldout(*d[:3]) == (d[1] in found.groups) for d in own)
    shuffled = documents.copy()
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert split(shuffled, share) == found
