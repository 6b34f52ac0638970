"""Our tokenizers beside public ones, on sources that ours were not trained on.

Three kinds of text, each a domain of its own:

* code: held-out files of the standard library.
* c: the headers of this Python's C interface.
* ikirere: this project's own package.

Held out: files of the standard library whose path, relative to it, has a SHA-256 whose first eight bytes are a number
that 20 divides; `--train` learns from the others, and so must what `--tokenizer` names. Ours then know the kind of text
and the public ones do not, by far more than a held-out file makes up for: modules have siblings with lines in common.
None of the other two domains may be trained on.

Example:
    python benchmarks/tokenizer/compare.py --train unigram:8192 --train bpe:8192 \\
        --vocabularies llama.cpp/models --beside rs_bpe:o200k --beside tekken=mistral:tekken \\
        --out comparison --write benchmarks/tokenizer/RESULTS.md

`--vocabularies` is a folder with llama.cpp's ggml-vocab-*.gguf (they are in its repository, and in the source package of
llama-cpp-python under vendor/llama.cpp/models). What is not at hand is left out, and the table says so. The criteria are
locked in OUT/plan.json before anything is measured; another set of criteria needs another OUT.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer import comparison_markdown as page
from ikirere.tokenizer.compare import compare
from ikirere.tokenizer.comparison import Arm, Comparison, Criterion, Document
from ikirere.tokenizer.train import train_tokenizer
from ikirere.tokenizer.vocabularies import name_of

ONE_IN = 20
BASELINE = "llama-3"
GGUF = {BASELINE: "llama-bpe", "gpt-2": "gpt-2", "starcoder": "starcoder"}
# Of a tokenizer that is to take the place of Llama-3's: its compression of code, by both measures, and nothing lost.
CRITERIA = (
    "bytes_per_token/code >= 4.1",
    "bytes_per_token/code >= llama-3",
    "bytes_per_token/c >= llama-3",
    "bytes_per_token/ikirere >= llama-3",
    "tokens_per_line/code <= 8.9",
    "round_trip_failures == 0",
    "parity_failures == 0",
    "unknown_tokens == 0",
)


def library(root: Path) -> tuple[list[Document], list[Document]]:
    """(to learn from, held out): the library's own .py files that are UTF-8, in the order of their paths."""
    parts: tuple[list[Document], list[Document]] = ([], [])
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if "site-packages" in name or "dist-packages" in name:
            continue
        try:
            text = file.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        parts[number % ONE_IN == 0].append(Document(name, "code", text))
    return parts


def others() -> list[Document]:
    """Sources of other kinds: C headers, and this project's own."""
    places = {
        "c": (Path(sysconfig.get_paths()["include"]), "*.h"),
        "ikirere": (Path(__file__).resolve().parents[2] / "src" / "ikirere", "*.py"),
    }
    return [
        Document(f"{domain}/{file.relative_to(root).as_posix()}", domain, file.read_bytes().decode("utf-8"))
        for domain, (root, pattern) in places.items()
        for file in sorted(root.rglob(pattern))
    ]


def trained(
    wanted: list[str], documents: list[Document], most: int, out: Path
) -> tuple[list[Arm], list[str]]:
    """Tokenizers trained here, kept beside the comparison for a second run, and what each took."""
    arms, notes = [], []
    texts = list(some(documents, most))
    size = sum(len(text.encode()) for text in texts)
    for one in wanted:
        kind, _, number = one.partition(":")
        config = Config.model_validate({"kind": kind, "vocab_size": int(number), "train_bytes": size})
        folder = out.with_name(out.name + "-trained") / f"{kind}-{number}-{size}"
        made = folder / "made.txt"  # last, so that what is half there is trained again
        if not made.is_file():
            begun = time.perf_counter()
            train_tokenizer(texts, config, folder, seed=0)
            seconds = time.perf_counter() - begun
            made.write_text(f"{kind}-{number}: trained here on {size / 1e6:.1f} MB in {seconds:.0f} s")
        notes.append(made.read_text())
        arms.append(Arm(f"{kind}-{number}", str(folder), True))
    return arms, notes


def some(documents: list[Document], most: int) -> Iterator[str]:
    """Whole files up to `most` bytes, in the order of a hash of their paths."""
    for document in sorted(documents, key=lambda one: hashlib.sha256(one.id[::-1].encode()).digest()):
        most -= len(document.text.encode())
        if most < 0:
            return
        yield document.text


def named(spec: str, candidate: bool) -> Arm:
    name, sign, rest = spec.partition("=")
    return Arm(name, rest, candidate) if sign and "/" not in name else Arm(name_of(spec), spec, candidate)


def table(comparison: Comparison, notes: list[str], command: str) -> str:
    names = [arm.name for arm in comparison.plan.arms if arm.name not in comparison.missing]
    documents, plan = comparison.plan.documents, comparison.plan
    lines = ["# Tokenizers beside public ones", ""]
    lines += [
        f"{documents['count']:,} files, {documents['bytes'] / 1e6:.2f} MB. code: held-out files of Python "
        f"{platform.python_version()}'s standard library, one in {ONE_IN} by a hash of the path; ours were trained on "
        "other files of that kind, which favours them. c: that Python's C headers; ikirere: this project's package; ours "
        "were trained on no file of either. What the public ones were trained on is not known here.",
        "",
        *page.domains(comparison.figures, names),
        *page.verdicts(comparison.verdicts),
        *page.arms(comparison),
        *(f"- {note}" for note in notes),
        "",
        f"Brackets: {plan.confidence:.0%} bootstrap interval over files ({plan.resamples:,} draws, seed {plan.seed}); "
        "differences are paired. Encoding speed is per second of processor time, all threads counted, one run on "
        f"{processor()}, other work beside it. Plan {plan.sha256[:12]}, locked before measuring.",
        "",
        f"Made by `{command}`.",
        "",
    ]
    return "\n".join(lines)


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    except OSError:
        pass
    return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", action="append", default=[], metavar="[NAME=]PATH", help="one of ours")
    parser.add_argument(
        "--train", action="append", default=[], metavar="KIND:IDS", help="train one here, such as bpe:8192"
    )
    parser.add_argument("--train-bytes", type=int, default=10**9, help="at most, for --train")
    parser.add_argument("--vocabularies", type=Path, help="folder with ggml-vocab-*.gguf")
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="[NAME=]SPEC",
        help="another vocabulary, such as rs_bpe:o200k",
    )
    parser.add_argument(
        "--note", action="append", default=[], help="a line for the table, such as how one was made"
    )
    parser.add_argument(
        "--criterion", action="append", default=[], help=f"in place of: {'; '.join(CRITERIA)}"
    )
    parser.add_argument("--library", type=Path, default=Path(sysconfig.get_paths()["stdlib"]), help="sources")
    parser.add_argument("--out", type=Path, required=True, help="folder of this comparison")
    parser.add_argument("--write", type=Path, help="Markdown file for the table")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rest, held_out = library(args.library)
    documents = [*held_out, *others()]
    own, notes = trained(args.train, rest, args.train_bytes, args.out)
    arms = [*(named(spec, True) for spec in args.tokenizer), *own]
    absent = []
    for name, stem in GGUF.items():
        file = args.vocabularies / f"ggml-vocab-{stem}.gguf" if args.vocabularies else None
        if file is not None and file.is_file():
            arms.append(Arm(name, str(file), False))
        else:
            absent.append(name)
    arms += [named(spec, False) for spec in args.beside]
    if absent:
        notes.append(f"not at hand, so not measured: {', '.join(absent)}")
    at_hand = {arm.name for arm in arms}
    chosen = [Criterion.parse(text) for text in args.criterion or CRITERIA]
    for criterion in [one for one in chosen if isinstance(one.target, str) and one.target not in at_hand]:
        chosen.remove(criterion)
        notes.append(f"NOT RUN: {criterion} ({criterion.target} is not at hand)")
    comparison = compare(
        args.out, arms, documents, chosen, args.seed, say=lambda line: print(line, file=sys.stderr)
    )
    made = table(
        comparison, [*args.note, *notes], "python benchmarks/tokenizer/compare.py " + shown(sys.argv[1:])
    )
    print(made)
    if args.write:
        args.write.write_text(made + kept(args.write), encoding="utf-8")


def kept(file: Path) -> str:
    """What other scripts wrote into the same file, between marks that bear their names."""
    if not file.is_file():
        return ""
    marked = r"<!-- (\S+): begin -->.*?<!-- \1: end -->\n"
    return "".join(
        "\n" + found[0] for found in re.finditer(marked, file.read_text(encoding="utf-8"), re.DOTALL)
    )


def shown(arguments: list[str]) -> str:
    """The command line with folders by their last part: where they lie says nothing to others."""
    words, note = [], False
    for word in arguments:
        if note or word == "--note":
            note = word == "--note"
            continue
        name, sign, path = word.partition("=") if "=" in word.split("/")[0] else ("", "", word)
        short = f"{name}{sign}{Path(path).name if '/' in path else path}"
        words.append(f"'{short}'" if " " in short else short)
    return " ".join(words)


if __name__ == "__main__":
    main()
