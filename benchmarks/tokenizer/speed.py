"""Encoding speed on one thread: ours, sentencepiece, tokenizers, and BPE encoders beside them, on the same text.

Every arm is a process of its own that has loaded its vocabulary and waits. They encode the same documents in turn, one
arm after the other, round after round, so that a busy moment of the machine meets all of them. The figure is the best
round's processor time (user + system, all threads) per original byte; wall time of that round stands beside it.

The vocabularies: `--unigram` and `--bpe`, folders with a tokenizer.json, or trained here on the standard library files
that are not encoded. The text: standard library sources of this interpreter, by default the twentieth whose hash of the
path is 0 modulo 20, or the files below `--text`.

Example:
    python benchmarks/tokenizer/speed.py --unigram DATA/unigram150k --bpe DATA/bpe150k \\
        --peer-python PEERS/bin/python --write benchmarks/tokenizer/RESULTS.md

PEERS is an environment with any of tiktoken, tokie, gigatoken; arms whose peer is missing are left out and the table
says so. tiktoken gets the ranks of our own BPE, the others its tokenizer.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results import written

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
Encode = Callable[[list[str]], Iterable[Iterable[int]]]


@dataclass
class Arm:
    """A way to encode: `kind` names the vocabulary (unigram, bpe), `code` what runs in the arm's process."""

    name: str
    code: str
    kind: str
    package: str
    peer: bool = False
    version: str = ""
    missing: str = ""
    times: list[tuple[float, float]] = field(default_factory=list)
    tokens: int = 0
    checks: list[int] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None


def arms() -> list[Arm]:
    """All arms, ours first."""
    return [
        Arm("Ikirere, indent transform", "ours:lines", "unigram", "sentencepiece"),
        Arm("Ikirere, indent transform, as arrays", "ours:lines-arrays", "unigram", "sentencepiece"),
        Arm("Ikirere, without the transform", "ours:plain", "unigram", "sentencepiece"),
        Arm("sentencepiece alone", "sentencepiece", "unigram", "sentencepiece"),
        Arm("tokenizers", "tokenizers", "unigram", "tokenizers"),
        Arm("tokie", "tokie", "unigram", "tokie", peer=True),
        Arm("Ikirere (tokenizers)", "ours:plain", "bpe", "tokenizers"),
        Arm("tiktoken", "tiktoken", "bpe", "tiktoken", peer=True),
        Arm("tokie", "tokie", "bpe", "tokie", peer=True),
        Arm("gigatoken", "gigatoken", "bpe", "gigatoken", peer=True),
    ]


# ---------------------------------------------------------------- in an arm's process (a peer's may lack ikirere)


def load(code: str, folder: Path) -> Encode:
    """The function that encodes documents. Imports what it needs."""
    file = folder / "tokenizer.json"
    if code.startswith("ours:"):
        from ikirere.tokenizer.base import Tokenizer

        ours = Tokenizer(file.read_text(encoding="utf-8"), indent_transform=code.startswith("ours:lines"))
        return ours.encode_arrays if code.endswith("arrays") else ours.encode_batch
    if code == "sentencepiece":
        import sentencepiece

        alone = sentencepiece.SentencePieceProcessor(model_file=str(folder / "pieces.model"))
        return lambda texts: [alone.encode(text) for text in texts]
    if code == "tokenizers":
        import tokenizers

        backend = tokenizers.Tokenizer.from_file(str(file))
        backend.encode_special_tokens = True
        return lambda texts: [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
    if code == "tiktoken":
        import tiktoken

        ranks = {
            bytes.fromhex(token): rank for token, rank in json.loads((folder / "ranks.json").read_text())
        }
        cut = json.loads(file.read_text(encoding="utf-8"))["pre_tokenizer"]["pretokenizers"][0]["pattern"]
        encoding = tiktoken.Encoding("ours", pat_str=cut["Regex"], mergeable_ranks=ranks, special_tokens={})
        return lambda texts: [encoding.encode_ordinary(text) for text in texts]
    if code == "tokie":
        import tokie

        other = tokie.Tokenizer.from_json(str(file))
        return lambda texts: [other.encode(text, add_special_tokens=False).ids for text in texts]
    import gigatoken

    giga = gigatoken.Tokenizer(str(file))
    return lambda texts: giga.encode_batch_list(texts, parallel=False)


def serve(code: str, folder: Path, texts_file: Path) -> None:
    """ToolReply each line on standard input with one line: `time` with seconds, `check` with what was encoded."""
    texts = json.loads(texts_file.read_text(encoding="utf-8"))
    encode = load(code, folder)
    encode(texts[:1])
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "time":
            wall, cpu = time.perf_counter(), time.process_time()
            made = encode(texts)
            answer: Any = [time.process_time() - cpu, time.perf_counter() - wall]
            del made
        else:
            first = 17 if code == "tiktoken" else 0  # its ranks begin behind our special tokens
            rows = [array("i", [int(i) + first for i in ids]) for ids in encode(texts)]
            answer = [sum(map(len, rows)), [zlib.crc32(row.tobytes()) for row in rows]]
        print(json.dumps(answer), flush=True)


# ---------------------------------------------------------------- in the main process


def documents(text: Path | None) -> tuple[list[str], list[str]]:
    """(documents to encode, the other ones)."""
    root = text or Path(sysconfig.get_paths()["stdlib"])
    taken: list[str] = []
    others: list[str] = []
    for file in sorted(root.rglob("*.py" if text is None else "*")):
        if not file.is_file() or "site-packages" in file.parts:
            continue
        try:
            content = file.read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            continue
        path = file.relative_to(root).as_posix()
        chosen = (
            text is not None or int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % 20 == 0
        )
        (taken if chosen else others).append(content)
    return [t for t in taken if t], others


def prepare(args: argparse.Namespace, others: list[str], work: Path) -> dict[str, Path]:
    """A folder for each kind with tokenizer.json, and the vocabulary in the form of sentencepiece or tiktoken."""
    from ikirere.recipe.sections import Tokenizer as Config
    from ikirere.tokenizer import bpe, unigram
    from ikirere.tokenizer.base import Tokenizer, byte_characters
    from ikirere.tokenizer.sentencepiece_encoder import model_proto

    folders = {}
    for kind, given in (("unigram", args.unigram), ("bpe", args.bpe)):
        folder = work / kind
        folder.mkdir()
        if given is not None:
            definition = (given / "tokenizer.json").read_text(encoding="utf-8")
        else:
            config = Config(kind=kind, vocab_size=args.vocab, indent_transform=kind == "unigram")
            sample, size = [], 0
            for text in others:
                size += len(text)
                if size <= args.train_bytes:
                    sample.append(text)
            print(f"training {kind} with {args.vocab} ids", file=sys.stderr)
            definition = (unigram if kind == "unigram" else bpe).define(sample, config, work, work)
        Tokenizer(definition).save(folder)
        model = json.loads(definition)["model"]
        if kind == "unigram":
            (folder / "pieces.model").write_bytes(model_proto(model["vocab"]))
        else:
            table = byte_characters()
            special = {token["content"] for token in json.loads(definition)["added_tokens"]}
            names = sorted(model["vocab"].keys() - special, key=model["vocab"].__getitem__)
            ranks = [[bytes(table[c] for c in name).hex(), rank] for rank, name in enumerate(names)]
            (folder / "ranks.json").write_text(json.dumps(ranks))
        folders[kind] = folder
    return folders
    return folders


def start(arm: Arm, python: str, folder: Path, texts: Path) -> None:
    """Start the arm's process, or say in `arm.missing` why it cannot be."""
    command = [
        python,
        str(Path(__file__).resolve()),
        "--arm",
        arm.code,
        "--folder",
        str(folder),
        "--texts",
        str(texts),
    ]
    arm.process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | ONE_THREAD,
    )  # fmt: skip
    assert arm.process.stdout is not None
    if arm.process.stdout.readline() != "ready\n":
        _, errors = arm.process.communicate()
        arm.missing = (errors.strip().splitlines() or ["ended"])[-1]
        arm.process = None
        return
    asked = f"from importlib.metadata import version; print(version({arm.package!r}))"
    arm.version = subprocess.run(
        [python, "-c", asked], capture_output=True, text=True, check=True
    ).stdout.strip()


def ask(arm: Arm, question: str) -> Any:
    """One question to the arm's process."""
    assert arm.process is not None and arm.process.stdin is not None and arm.process.stdout is not None
    arm.process.stdin.write(question + "\n")
    arm.process.stdin.flush()
    return json.loads(arm.process.stdout.readline())


def measure(running: list[Arm], rounds: int) -> None:
    for arm in running:
        arm.tokens, arm.checks = ask(arm, "check")
    for number in range(rounds):
        for arm in running:
            cpu, wall = ask(arm, "time")
            arm.times.append((cpu, wall))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)


def equal(arm: Arm, others: list[Arm]) -> str:
    """Documents with the ids that `tokenizers` gives them."""
    if "transform" in arm.name and "without" not in arm.name:
        return "other ids by design"
    record = next((o for o in others if o.kind == arm.kind and o.package == "tokenizers" and o.checks), None)
    if record is None:
        return "not measured"
    if arm is record:
        return "is the record"
    same = sum(a == b for a, b in zip(arm.checks, record.checks, strict=True))
    return f"{same} of {len(arm.checks)}"


def table(found: list[Arm], size: int) -> list[str]:
    """Markdown rows, and below them who is missing."""
    lines = [
        "| vocabulary | encoder | MB per CPU-second, best round | middle round | MB/s of wall time, best round "
        "| times sentencepiece alone | bytes per token | documents with the ids of tokenizer.json |",
        "|---|---|---|---|---|---|---|---|",
    ]
    alone = next((min(arm.times)[0] for arm in found if arm.code == "sentencepiece" and arm.times), None)
    for arm in found:
        if not arm.times:
            continue
        best, wall = min(arm.times)
        middle = statistics.median(cpu for cpu, _ in arm.times)
        ratio = f"{alone / best:.2f}" if alone else "not measured"
        lines.append(
            f"| {arm.kind} | {arm.name} | {size / best / 1e6:.1f} | {size / middle / 1e6:.1f} | {size / wall / 1e6:.1f} "
            f"| {ratio} | {size / arm.tokens:.3f} | {equal(arm, found)} |"
        )
    lines += ["", *(f"Not measured: {arm.kind}, {arm.name} ({arm.missing})." for arm in found if arm.missing)]
    return lines


def processor() -> str:
    """The processor's name, as the system says it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def notes(
    args: argparse.Namespace, found: list[Arm], texts: list[str], size: int, folders: dict[str, Path]
) -> str:
    sizes = {}
    for kind, folder in folders.items():
        tree = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        sizes[kind] = len(tree["model"]["vocab"])
    versions = sorted({f"{arm.package} {arm.version}" for arm in found if arm.version})
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{len(texts)} documents, {size / 1e6:.2f} MB"
        + (" of this interpreter's standard library" if args.text is None else "")
        + f"; vocabularies: unigram {sizes['unigram']:,} ids, bpe {sizes['bpe']:,} ids"
        + (
            ""
            if args.unigram and args.bpe
            else f" (what is not given is trained on {args.train_bytes:,} characters)"
        )
        + f"; {args.rounds} rounds, one thread; nothing is drawn by chance. Processor: {processor()}, load {load} at the "
        f"end. Python {platform.python_version()}, {', '.join(versions)}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--unigram", type=Path, help="folder of a tokenizer of kind unigram with indent_transform"
    )
    parser.add_argument("--bpe", type=Path, help="folder of a tokenizer of kind bpe")
    parser.add_argument("--vocab", type=int, default=8192, help="ids of a vocabulary that is trained here")
    parser.add_argument("--train-bytes", type=int, default=4_000_000, help="characters to train it on")
    parser.add_argument(
        "--text", type=Path, help="folder of files to encode instead of standard library sources"
    )
    parser.add_argument(
        "--peer-python", default=sys.executable, help="python with tiktoken, tokie, gigatoken"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="only encoders whose name holds one of these"
    )
    parser.add_argument("--write", type=Path, help="Markdown file whose section of this script is replaced")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--texts", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        serve(args.arm, args.folder, args.texts)
        return
    texts, others = documents(args.text)
    if not texts:
        parser.error("there is no text to encode")
    size = sum(len(text.encode()) for text in texts)
    found = [arm for arm in arms() if not args.only or any(word in arm.name for word in args.only)]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        file = work / "texts.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        folders = prepare(args, others, work)
        try:
            for arm in found:
                start(arm, args.peer_python if arm.peer else sys.executable, folders[arm.kind], file)
            measure([arm for arm in found if arm.process is not None], args.rounds)
        finally:
            for arm in found:
                if arm.process is not None:
                    arm.process.kill()
                    arm.process.communicate()
        section = "\n".join(
            ["## Encoding speed", "", *table(found, size), notes(args, found, texts, size, folders)]
        )
    print(section)
    if args.write:
        written(args.write, "speed.py", section)


if __name__ == "__main__":
    main()
