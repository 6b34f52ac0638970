"""Names, items and places with which wordings are filled in."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    """Ada Adam Aisha Alice Ama Amir Ana Anna Ben Carla Chen Clara Daniel David Diane Elena Emma Eric Eva Felix Fatima
    Grace Hana Hugo Ida Ines Ivan Jack James Jean Joan John Julia Kai Karim Kofi Lara Leo Lena Lily Linda Lucas Luis
    Mara Maria Mark Maya Mei Mia Mina Mona Nadia Nina Noah Nora Olga Omar Oscar Pablo Paul Peter Priya Rita Rosa Ruth
    Sam Sara Sofia Tara Theo Tom Uma Vera Victor Wei Yara Zoe"""
)

ITEMS = _words(
    """apples bags balls beads boards bolts books bottles bricks buttons cakes candles cans cards chairs coins cookies
    crates cups doors drums eggs files flags flowers gears grapes hats jars keys labels lamps leaves lemons letters
    marbles melons nails notes nuts oranges pages papers parts peaches pears pens pencils pictures pins plants plates
    plums points postcards ribbons ropes screws seeds shells shirts spoons stamps stickers stones tickets tiles toys
    tools trees tubes wheels windows wires words"""
)

BOXES = _words(
    "bags baskets boxes bundles cases cartons crates drawers folders jars packs rows shelves stacks trays"
)

PLACES = _words(
    "bakery bank camp factory farm garden hall hotel kitchen library market museum office park school shop station store"
)
