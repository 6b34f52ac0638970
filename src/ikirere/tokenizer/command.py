"""What `ikirere tokenizer train`, `report` and `compare` do, as functions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ikirere.corpus.document import read_documents
from ikirere.errors import UserError
from ikirere.recipe.load import load_recipe
from ikirere.tokenizer.base import FILE, Tokenizer
from ikirere.tokenizer.compare import compare as compare_arms
from ikirere.tokenizer.compare import fingerprint
from ikirere.tokenizer.comparison import Arm, Comparison, Criterion, Document, default_criteria
from ikirere.tokenizer.comparison_markdown import domains
from ikirere.tokenizer.corpus import choose_sample
from ikirere.tokenizer.report import ALL, TOGETHER, Figures, Row, count_document, measure_documents, totals
from ikirere.tokenizer.train import train_tokenizer
from ikirere.tokenizer.vocabularies import OwnVocabulary, name_of, read_vocabulary
from ikirere.tokenizer.vocabulary import Vocabulary

TRAIN, HELDOUT = "documents-train.parquet", "documents-heldout.parquet"
Say = Callable[[str], None]

# What a file of a folder is, by the end of its name; other files are left out.
_ENDS = {
    "code": "py pyi c h cc cpp cxx hpp cu java js jsx mjs ts tsx go rs rb php cs kt swift scala sh sql lua r jl pl hs",
    "text": "md rst txt tex html htm",
    "data": "json yaml yml toml ini cfg xml csv",
}
DOMAINS = {f".{end}": domain for domain, ends in _ENDS.items() for end in ends.split()}


def train(
    recipe_file: str | Path,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    run_folder: Path | None = None,
    text: Sequence[str] = (),
    say: Say = print,
) -> Tokenizer:
    """Trains the recipe's tokenizer outside of a run and saves it in `out` (default: tokenizers/NAME).

    It learns from files, folders and globs of `text`, or else from the training documents that the stage "data" left
    in `run_folder` (default: runs/NAME): a sample by `tokenizer.mixture` up to `tokenizer.train_bytes` in both cases.
    Raises UserError where neither is there, or `out` already holds a tokenizer.
    """
    recipe = load_recipe(recipe_file, overrides)
    config = recipe.tokenizer
    target = out or Path("tokenizers", recipe.name)
    if (target / FILE).exists():
        raise UserError(f"{target}: already holds a {FILE}; give another --out")
    base = Path(recipe_file).resolve().parent
    if config.kind == "pretrained":
        say(f"adopting {config.pretrained}")
        return _reported(train_tokenizer((), config, target, recipe.seed, base), target, say)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="training.part.", dir=target.parent) as work:
        parquet = (run_folder or Path("runs", recipe.name)) / "data" / TRAIN
        if text:
            parquet = Path(work, TRAIN)
            _write_documents(parquet, [document for path in text for document in read_files(path, say)])
        elif not parquet.is_file():
            raise UserError(
                f"{parquet}: not there; give --text FILES, or run the stage data first (ikirere run ... --until data)"
            )
        sample = choose_sample(parquet, config.train_bytes, config.mixture, recipe.seed)
        for domain, size in sample.taken.items():
            say(f"{domain}: {size / 1e6:.1f} MB")
        say(f"training {config.kind} with {config.vocab_size:,} ids")
        tokenizer = train_tokenizer(sample, config, target, recipe.seed, base, _tenths(say))
    return _reported(tokenizer, target, say)


def report(
    tokenizer: str | Path, documents: str | Path, seed: int = 0, say: Say = print
) -> dict[str, dict[str, float]]:
    """Figures of one tokenizer (ours or any that can be read) on documents; reports them as a table through `say`.

    Returns domain ("" for all) -> figure -> value; for one of ours also the forged special tokens, under "".
    """
    found = [document for document in read_held_out(documents, say) if document.text]
    if not found:
        raise UserError(f"{documents}: no document with text there; give a parquet, a folder or a glob")
    vocabulary = read_vocabulary(tokenizer)
    rows = list(_rows(vocabulary, found))
    figures = Figures({vocabulary.name: rows}, {vocabulary.name: vocabulary.vocab_size}, seed)
    about = fingerprint(found)
    say(f"{vocabulary.name}: {vocabulary.vocab_size:,} ids, {vocabulary.library}")
    say(f"{about['count']:,} documents, {about['bytes'] / 1e6:.1f} MB\n")
    for line in domains(figures, [vocabulary.name]):
        say(line)
    values: dict[str, dict[str, float]] = {}
    for figure in figures.found.values():
        values.setdefault(figure.domain, {})[figure.metric] = figure.value
    if isinstance(vocabulary, OwnVocabulary):
        values[ALL]["forged_specials"] = totals(rows)["forged_specials"]
        say(f"forged special tokens: {values[ALL]['forged_specials']:.0f}")
    return values


def compare(
    tokenizers: Sequence[str],
    beside: Sequence[str],
    documents: str | Path,
    out: Path,
    baseline: str | None = None,
    criteria: Sequence[str] = (),
    seed: int = 0,
    say: Say = print,
) -> Comparison:
    """Compares tokenizers with each other and with the reference vocabularies `beside`; writes the report in `out`.

    tokenizers, beside: PATH or NAME=PATH, as `vocabularies.read_vocabulary` takes them. baseline: the arm whose
    compression the default criteria ask for. criteria: `METRIC[/DOMAIN] OP TARGET`, instead of the default ones.
    """
    arms = [*(_arm(spec, True) for spec in tokenizers), *(_arm(spec, False) for spec in beside)]
    names = [one.name for one in arms]
    if baseline is not None and baseline not in names:
        raise UserError(f"--baseline {baseline}: no arm has this name; arms are {', '.join(names)}")
    found = read_held_out(documents, say)
    chosen = [Criterion.parse(text) for text in criteria] or default_criteria(
        baseline, (document.domain for document in found)
    )
    comparison = compare_arms(out, arms, found, chosen, seed, say=say)
    for judged in comparison.verdicts:
        say(f"{judged.verdict}: {judged.arm}: {judged.criterion}" + (judged.reason and f" ({judged.reason})"))
    say(f"{out / 'report.md'}")
    return comparison


# ---------------------------------------------------------------- documents


def read_held_out(path: str | Path, say: Say = print) -> list[Document]:
    """Documents to measure on: a documents parquet, the run folder that holds one held out, or `read_files`."""
    given = Path(path).expanduser()
    for file in (given, given / HELDOUT, given / "data" / HELDOUT):
        if file.suffix == ".parquet" and file.is_file():
            rows = read_documents(file, ("id", "domain", "text"))
            return [Document(row["id"], row["domain"], row["text"]) for row in rows]
    return read_files(path, say)


def read_files(path: str | Path, say: Say = print) -> list[Document]:
    """Documents from a file, a folder (files whose endings `DOMAINS` lists, hidden ones left out) or a glob, in
    the order of their names, line ends as they are. Files that are not UTF-8 are left out and counted by `say`.

    Raises UserError where there is no such file.
    """
    text = str(path)
    given = Path(text).expanduser()
    if given.is_dir():
        files = sorted(
            file
            for file in given.rglob("*")
            if file.suffix.lower() in DOMAINS and not any(p[0] == "." for p in file.relative_to(given).parts)
        )
        names = [file.relative_to(given).as_posix() for file in files]
    else:
        files = [given] if given.is_file() else _glob(given)
        names = [file.as_posix() for file in files]
    documents, other = [], 0
    for name, file in zip(names, files):
        if not file.is_file():
            continue
        try:
            content = file.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            other += 1
            continue
        documents.append(Document(name, DOMAINS.get(file.suffix.lower(), "other"), content))
    if other:
        say(f"{text}: {other} files left out (unreadable or not UTF-8)")
    if not documents:
        raise UserError(f"{text}: no text file there; give a file, a folder, a glob or a documents parquet")
    return documents


def _glob(pattern: Path) -> list[Path]:
    try:
        return sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    except ValueError as error:
        raise UserError(f"{pattern}: not a glob ({error})") from None


def _write_documents(parquet: Path, documents: Sequence[Document]) -> None:
    """As the data stage writes them, as far as a tokenizer's sample reads them."""
    table = pa.table(
        {
            "id": [f"{i:08d}" for i in range(len(documents))],
            "text": [document.text for document in documents],
            "domain": [document.domain for document in documents],
        },
        schema=pa.schema([("id", pa.string()), ("text", pa.string()), ("domain", pa.string())]),
    )
    pq.write_table(table, parquet)


# ---------------------------------------------------------------- small parts


def _rows(vocabulary: Vocabulary, documents: Sequence[Document]) -> Iterator[Row]:
    if isinstance(vocabulary, OwnVocabulary):
        fields = ({"id": d.id, "domain": d.domain, "text": d.text} for d in documents)
        yield from measure_documents(vocabulary.tokenizer, fields)
        return
    seen: set[int] = set()
    for start in range(0, len(documents), TOGETHER):
        batch = documents[start : start + TOGETHER]
        for document, ids in zip(batch, vocabulary.encode_batch([d.text for d in batch])):
            counts = count_document(document.text, ids, vocabulary, seen)
            yield {"id": document.id, "domain": document.domain, **counts}


def _arm(spec: str, candidate: bool) -> Arm:
    """`NAME=PATH`, or a path with its own name; an `=` after a slash belongs to the path."""
    name, sign, rest = spec.partition("=")
    if sign and name and rest and "/" not in name:
        return Arm(name, rest, candidate)
    return Arm(name_of(spec), spec, candidate)


def _reported(tokenizer: Tokenizer, folder: Path, say: Say) -> Tokenizer:
    say(f"{folder}: {tokenizer.vocab_size:,} ids, sha256 {tokenizer.sha256[:12]}")
    return tokenizer


def _tenths(say: Say) -> Callable[[float], None]:
    """A callback for a trainer's progress in [0, 1] that reports each tenth."""
    shown = 0

    def advance(share: float) -> None:
        nonlocal shown
        if int(share * 10) > shown:
            shown = int(share * 10)
            say(f"{shown * 10}%")

    return advance
