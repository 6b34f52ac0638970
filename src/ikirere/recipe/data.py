"""The section `data` of a recipe: sources, and what is done to their documents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ikirere.recipe.hygiene import Decontaminate, Language, NearDuplicates, Normalise, Pii, Policy, Quality
from ikirere.recipe.section import Fraction, Positive, Section

class PythonEnvironment(Section):
    """The interpreter's standard library and the installed distributions, with their licences."""

    kind: Literal["python-environment"]
    name: str = "python-environment"
    include: tuple[Literal["code", "docs"], ...] = ("code", "docs")
    domain: str | None = Field(
        default=None, description="one domain for all documents; default: code and docs"
    )
    slice: str = Field(
        default="1/1", pattern=r"^\d+/\d+$", description="i/n: the i-th of n disjoint slices of distributions"
    )
    max_bytes: Positive | None = None


class Local(Section):
    """A file or folder on this machine: text, JSONL or Parquet, told apart by the file's ending."""

    kind: Literal["local", "jsonl", "parquet"]
    name: str
    path: str = Field(description="absolute, relative to the recipe, or starting with ${IKIRERE_DATA}")
    domain: str
    text_field: str = "text"
    licence: str | None = Field(default=None, description="SPDX id of all documents, where rows carry none")
    licence_field: str | None = "spdx"
    group_field: str | None = Field(
        default=None, description="column by which documents are split; default: the file"
    )
    pattern: str = Field(default="**/*", description="glob below path, for folders")
    max_bytes: Positive | None = None


class Hub(Section):
    """A Hugging Face dataset, streamed; `mirror` names its stand-in below IKIRERE_DATA."""

    kind: Literal["hub"]
    name: str
    dataset: str
    config: str | None = None
    split: str = "train"
    data_dir: str | None = None
    revision: str | None = None
    domain: str
    text_field: str = "text"
    licence: str | None = None
    licence_field: str | None = None
    group_field: str | None = None
    mirror: str | None = Field(
        default=None, description="glob below IKIRERE_DATA, used where that variable is set"
    )
    max_bytes: Positive | None = None


Source = Annotated[PythonEnvironment | Local | Hub, Field(discriminator="kind")]


class Data(Section):
    """What is read and what is done to it. A hygiene section set to null leaves that step out."""

    engine: Literal["native", "ray"] = Field(default="native", description="Daft on this machine, or on a Ray cluster")
    workers: Positive | None = Field(default=None, description="processes at work; default: one per core")
    version: str = Field(
        default="v0.1", pattern=r"^v[0-9][A-Za-z0-9._-]*$", description="of the manifests that are written"
    )
    sources: tuple[Source, ...] = Field(min_length=1)
    heldout: Fraction = Field(
        default=0.05, description="share of each domain's bytes kept out of training, by whole groups"
    )
    licences: Literal["permissive", "any"] = "permissive"
    max_document_bytes: Positive = 1_000_000
    evaluation_sets: tuple[str, ...] = Field(
        default=(), description="benchmarks that no training source may contain"
    )
    normalise: Normalise | None = Normalise()
    near_duplicates: NearDuplicates | None = NearDuplicates()
    language: Language | None = None
    pii: Pii | None = None
    policy: Policy | None = None
    quality: Quality | None = None
    decontaminate: Decontaminate = Decontaminate()
