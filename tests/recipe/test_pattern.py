"""One grammar for the patterns of mixers and of feed-forwards, in recipes and in model folders."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.recipe import ffns, mixers
from ikirere.recipe.load import load_recipe
from ikirere.recipe.pattern import expand, period

SMALL = Path(__file__).with_name("small.yaml")
NAMES = ("full", "kda", "mamba2")
items = st.tuples(st.sampled_from(NAMES), st.integers(1, 999) | st.none(), st.sampled_from([" ", "  ", "\t"]))


@given(st.lists(items, min_size=1, max_size=4), st.integers(1, 30))
def test_items_are_written_out_and_repeated_to_the_depth(
    parts: list[tuple[str, int | None, str]], depth: int
) -> None:
    text = "".join(f"{name}*{n}{blank}" if n else name + blank for name, n, blank in parts)
    written = [name for name, n, _ in parts for _ in range(n or 1)]
    assert period("key", "name", text, NAMES) == tuple(written)
    assert expand("key", "name", text, NAMES, depth) == tuple((written * depth)[:depth])


@given(st.text(alphabet="fulkda*0159 -,\n٣", max_size=12) | st.text(max_size=8))
@example("full*1000")
@example("full*007")
@example("full*0")
@example("full*-1")
@example("full*")
@example("*3")
@example("3*full")
@example("full*3*3")
@example("full*٣")
@example(" ")
def test_all_else_is_refused_in_one_line(text: str) -> None:
    valid = (
        all(re.fullmatch(r"(full|kda|mamba2)(\*[1-9][0-9]{0,2})?", item) for item in text.split())
        and text.split()
    )
    try:
        period("key", "name", text, NAMES)
    except ValueError as error:
        assert not valid
        assert str(error).startswith("key ")
        assert "\n" not in str(error)
    else:
        assert valid


def of_config(mixer: str) -> tuple[str, ...]:
    return ModelConfig(40, 16, 3, 2, 1, 24, 64, layer_pattern=mixer).layer_kinds


def of_recipe(mixer: str) -> tuple[str, ...]:
    return load_recipe(SMALL, [f"model.layer_pattern={mixer}", "model.num_hidden_layers=3"]).model.layers


READERS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "recipe": of_recipe,
    "model folder": of_config,
    "phase": lambda text: mixers.layers(text, 3),
    "feed-forward": lambda text: ffns.layers(text.replace("full", "dense"), 3),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_every_reader_has_the_same_grammar(read: Callable[[str], tuple[str, ...]]) -> None:
    assert len(read("full*999")) == 3
    for text in ("full*1000", "full*007", "full*0", "full*", "full,full"):
        with pytest.raises((ValueError, UserError), match="_pattern"):
            read(text)
