"""The section `data` of a recipe: sources, and what is done to their documents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ikirere.recipe.hygiene import Decontaminate, Language, NearDuplicates, Normalise, Pii, Policy, Quality
from ikirere.recipe.section import WATCHING, Fraction, Positive, Section


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
    """A file or folder on this machine: text, JSONL or Parquet, distinguished by the file's ending, each also as .gz
    and .zst."""

    kind: Literal["local", "jsonl", "parquet"]
    name: str
    path: str = Field(description="absolute, relative to the recipe, or starting with ${IKIRERE_DATA}")
    domain: str
    text_field: str = "text"
    licence: str | None = Field(default=None, description="SPDX id of all documents, where rows carry none")
    licence_field: str | None = "spdx"
    url_field: str | None = Field(
        default="url", description="column of the address that a row was published at"
    )
    group_field: str | None = Field(
        default=None, description="column by which documents are split; default: the file"
    )
    pattern: str = Field(default="**/*", description="glob below path, for folders")
    max_bytes: Positive | None = None


Preset = Literal[
    "arc-agi-1", "arc-agi-2", "arxiv", "codeparrot-clean", "fineweb-edu", "github-issues", "gsm8k-train",
    "maze-hard", "open-web-math", "openwebtext", "openwebtext2", "pg19", "stackexchange", "sudoku-extreme",
    "the-stack-dedup", "wikipedia",
]  # fmt: skip
PYTHON_ENVIRONMENT = "python-environment"  # as a `mirror`


class Hub(Section):
    """A Hugging Face dataset, streamed; `mirror` names its stand-in below IKIRERE_DATA.

    `preset` fills in the dataset, its configuration and its columns; keys given beside it win. `dataset` beside a
    preset names a copy of the preset's dataset, of which the preset describes the columns.
    """

    kind: Literal["hub"]
    name: str
    preset: Preset | None = Field(default=None, description="a public dataset whose columns are known")
    dataset: str | None = Field(default=None, description="owner/name, or a folder in the hub's format")
    config: str | None = None
    split: str = Field(default="train", description="where the preset names no other")
    data_dir: str | None = None
    revision: str | None = None
    domain: str
    text_field: str | None = Field(default=None, description="default: the preset's, or text")
    licence: str | None = Field(
        default=None, description="SPDX id of all rows; default: as the preset knows it"
    )
    licence_field: str | None = None
    url_field: str | None = Field(default=None, description="default: the preset's, or url")
    group_field: str | None = Field(
        default=None, description="column by which documents are split; default: the preset's, or each row"
    )
    mirror: str | None = Field(
        default=None,
        description="glob below IKIRERE_DATA, or `python-environment` (the interpreter's code), used where that "
        "variable is set",
    )
    max_bytes: Positive | None = None

    @model_validator(mode="after")
    def _named(self) -> Hub:
        if self.preset is None and self.dataset is None:
            raise ValueError("a hub source needs `preset` or `dataset`")
        return self


class Arc(Section):
    """A folder of ARC task files (the JSON of fchollet/ARC-AGI), each task a document, with copies of it turned,
    mirrored and recoloured."""

    kind: Literal["arc"]
    name: str
    path: str = Field(description="absolute, relative to the recipe, or starting with ${IKIRERE_DATA}")
    domain: str = "arc"
    licence: str | None = Field(default=None, description="SPDX id of the task set")
    pattern: str = Field(default="**/*.json", description="glob below path")
    augment: Annotated[int, Field(ge=0)] = Field(default=0, description="altered copies of each task")
    seed: int = 0
    max_bytes: Positive | None = None


Puzzle = Literal["grid_transforms", "graph", "sudoku", "maze", "program_traces"]


class Puzzles(Section):
    """Synthetic puzzles and program traces, each solved or run before it is written."""

    kind: Literal["puzzles"]
    name: str = "puzzles"
    domain: str = "synthesis"
    generators: tuple[Puzzle, ...] = Field(
        default=("grid_transforms", "graph", "sudoku", "maze", "program_traces"), min_length=1
    )
    seed: int = 0
    slice: str = Field(
        default="1/1",
        pattern=r"^[1-9]\d*/[1-9]\d*$",
        description="i/n: the i-th of n parts that share no family",
    )
    givens: tuple[Annotated[int, Field(ge=22, le=80)], Annotated[int, Field(ge=22, le=80)]] = Field(
        default=(26, 40), description="sudoku: fewest and most givens"
    )
    maze_size: Annotated[int, Field(ge=12, le=60)] = Field(default=30, description="maze: longest side")
    count: Positive | None = Field(default=None, description="documents; `count` or `max_bytes` is needed")
    licence: str = "Apache-2.0"
    max_bytes: Positive | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Puzzles:
        if self.count is None and self.max_bytes is None:
            raise ValueError("puzzles have no end: give `count` or `max_bytes`")
        if self.givens[0] > self.givens[1]:
            raise ValueError(
                f"givens: the fewest ({self.givens[0]}) are more than the most ({self.givens[1]})"
            )
        index, parts = (int(n) for n in self.slice.split("/"))
        if index > parts:
            raise ValueError(f"slice: there is no part {index} of {parts}")
        if len(set(self.generators)) != len(self.generators):
            raise ValueError("generators: each once")
        return self


Source = Annotated[PythonEnvironment | Local | Hub | Arc | Puzzles, Field(discriminator="kind")]


class Data(Section):
    """What is read and what is done to it. A hygiene section set to null leaves that step out."""

    engine: Literal["native", "ray"] = Field(
        default="native",
        description="Daft on this machine, or on a Ray cluster",
        json_schema_extra=WATCHING,
    )
    workers: Positive | None = Field(
        default=None, description="processes at work; default: one per core", json_schema_extra=WATCHING
    )
    version: str = Field(
        default="v0.1",
        pattern=r"^v[0-9][A-Za-z0-9._-]*$",
        description="of the manifests that are written",
        json_schema_extra=WATCHING,
    )
    sources: tuple[Source, ...] = Field(min_length=1)
    heldout: Fraction = Field(
        default=0.05, description="share of each domain's bytes kept out of training, by whole groups"
    )
    licences: Literal["permissive", "open", "any"] = Field(
        default="permissive",
        description="open: also share-alike and copyleft; any: also what nobody declares",
    )
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
    decontaminate: Decontaminate | None = Field(
        default=Decontaminate(), description="in effect where evaluation_sets are named"
    )

    @property
    def domains(self) -> frozenset[str]:
        """The domains that the sources give."""
        named = {s.domain for s in self.sources if s.domain}
        own = (s.include for s in self.sources if isinstance(s, PythonEnvironment) and s.domain is None)
        return frozenset(named).union(*own)
