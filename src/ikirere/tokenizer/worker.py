"""Training in a process of its own: Ctrl-C ends it at once, and its memory goes back to the machine.

    python -m ikirere.tokenizer.worker PID < job.json

PID is the process for which it works: once that is gone, it ends.

The trainers are native code that does not look at signals; inside the main process a stop would have to wait for them.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ikirere.common.files import write_text
from ikirere.errors import UserError

Learn = Callable[[Iterable[str], int, bool], Any]


def learn_in_subprocess(
    learn: Learn,
    texts: Iterable[str],
    size: int,
    split_digits: bool,
    work: Path,
    listen: Callable[[str], None] | None = None,
) -> Any:
    """Runs `learn(texts, size, split_digits)` in a child process and returns its result.

    learn: a function of a module (the child imports it by name) with a JSON-able result. It may iterate over the texts
    several times; each time they are read from the disk. work: folder for the corpus while it is used. listen: gets each
    line of the trainer's log.
    Raises UserError where there is no text, or the child fails (with its last line).
    """
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="training.part.", dir=work) as name:
        corpus, result = Path(name, "corpus.jsonl"), Path(name, "result.json")
        with corpus.open("w", encoding="utf-8") as handle:
            written = sum(handle.write(json.dumps(text) + "\n") > 3 for text in texts)
        if not written:
            raise UserError(
                "tokenizer: there is no text to train on; check data.sources and tokenizer.mixture"
            )
        job = {
            "module": learn.__module__,
            "function": learn.__name__,
            "corpus": str(corpus),
            "result": str(result),
            "size": size,
            "split_digits": split_digits,
        }
        last = _run(json.dumps(job), listen)
        if not result.is_file():
            raise UserError(f"tokenizer: training ended early ({last or 'killed, perhaps out of memory'})")
        return json.loads(result.read_text(encoding="utf-8"))


def _run(job: str, listen: Callable[[str], None] | None) -> str:
    """Runs the child to its end and returns its last line, "" where a signal killed it. It never outlives this call."""
    # The pid is passed because the parent could be gone before the child has started and asks for it.
    command = [sys.executable, "-m", "ikirere.tokenizer.worker", str(os.getpid())]
    last = ""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace"
    ) as child:
        try:
            assert child.stdin is not None and child.stderr is not None
            # A child that ended before reading leaves a closed pipe; its output is read below.
            with suppress(BrokenPipeError):
                child.stdin.write(job)
            with suppress(BrokenPipeError):
                child.stdin.close()
            for line in child.stderr:
                last = line.strip() or last
                if listen is not None:
                    listen(last)
            code = child.wait()
        finally:
            child.kill()
    return "" if code < 0 else last


class _Texts:
    """The texts of the corpus file, from the beginning each time."""

    def __init__(self, corpus: Path) -> None:
        self._corpus = corpus

    def __iter__(self) -> Iterator[str]:
        with self._corpus.open(encoding="utf-8") as handle:
            for line in handle:
                yield json.loads(line)


def _leave_with(parent: int) -> None:
    """Ends this process once its parent is gone, so that a killed run leaves no trainer running."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """The child: job on standard input, trainer's log on standard error, result in the file that the job names."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_leave_with, args=(int(sys.argv[1]),), daemon=True).start()
    job = json.load(sys.stdin)
    learn: Learn = getattr(importlib.import_module(job["module"]), job["function"])
    learnt = learn(_Texts(Path(job["corpus"])), job["size"], job["split_digits"])
    write_text(Path(job["result"]), json.dumps(learnt))


if __name__ == "__main__":
    main()
