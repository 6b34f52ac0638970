"""The families of models: one line each."""

from __future__ import annotations

from ikirere.pretrain.decoder import DecoderFamily
from ikirere.pretrain.family import Family
from ikirere.pretrain.recursive import RecursiveFamily

FAMILIES: dict[str, type[Family]] = {family.name: family for family in (DecoderFamily, RecursiveFamily)}
