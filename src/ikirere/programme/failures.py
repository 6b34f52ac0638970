"""How commands end when they do not end well: one line on stderr and an exit code.

| exit code | when |
|---|---|
| 0 | done |
| 1 | a full disk, an unexpected error (traceback in error.log), or `verify` found a change |
| 2 | something the user can mend (UserError) |
| 3 | the verdict is DO NOT SHIP: a gate that stops was not passed |
| 130, 143 | Ctrl-C, SIGTERM |

After each of them the same command continues the run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from ikirere.common.files import free_bytes
from ikirere.errors import UserError
from ikirere.programme.ledger import now

FULL = {errno.ENOSPC, errno.EDQUOT}
FULL_TEXTS = ("no space left on device", "os error 28", "disk quota exceeded", "database or disk is full")
NEARLY_FULL = 256 * 1024  # bytes; some libraries hide the cause of a failed write
ADVICE = "free some space and give the command again"


class Failure(Exception):
    """Ends a command with one line and exit code 1; no traceback."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C."""


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            yield current
            waiting.extend((current.__cause__, current.__context__))


def disk_full(error: BaseException, folder: Path) -> str | None:
    """The line for the user where `error` came from a full disk, else None. `folder` is the one written to."""
    path: str | None = None
    full = False
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in FULL:
            full, path = True, path or cause.filename
        elif any(text in str(cause).lower() for text in FULL_TEXTS):
            full = True
    with contextlib.suppress(OSError):
        full = full or (not isinstance(error, UserError) and free_bytes(folder) < NEARLY_FULL)
    if not full:
        return None
    named = Path(os.fsdecode(path)) if path else folder
    with contextlib.suppress(OSError):
        return f"disk full: cannot write {named} ({free_bytes(folder)} bytes free); {ADVICE}"
    return f"disk full: cannot write {named}; {ADVICE}"


def first_line(error: BaseException) -> str:
    """`ValueError: its message`, one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def save_traceback(error: BaseException, folder: Path | None) -> Path | None:
    """Append the traceback to `folder/error.log` (or a temporary file); the path, or None where nothing can be written."""
    text = f"--- {now()}\n" + "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        if folder is not None and folder.is_dir():
            path = folder / "error.log"
        else:
            handle, name = tempfile.mkstemp(prefix="ikirere-error-", suffix=".log")
            os.close(handle)
            path = Path(name)
        with path.open("a", encoding="utf-8") as out:
            out.write(text)
        return path
    return None


def unexpected(error: BaseException, folder: Path | None, what: str = "") -> str:
    """The line for an error nobody foresaw, its traceback saved."""
    path = save_traceback(error, folder)
    where = f"; traceback in {path}" if path else ""
    return f"{what}{first_line(error)}{where}"


def unwritable(error: OSError, folder: Path) -> str:
    """The line for a folder or file that this user may not write."""
    named = os.fsdecode(error.filename) if error.filename else str(folder)
    return (
        f"{named}: cannot be written ({error.strerror}); nothing was lost: give this user the right to write there, or "
        "another --run-folder, and the command again"
    )


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def guard(action: Callable[[], int], folder: Path | None = None, resumable: bool = True) -> int:
    """Run `action` and turn every ending into a line on stderr and an exit code.

    `folder` takes the traceback of an unexpected error; `resumable`: whether the same command, given
    again, continues where it was stopped.
    """
    then = "; give the same command again to continue" if resumable else ""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return action()
    except UserError as error:
        return _say(f"error: {error}", 2)
    except Failure as error:
        return _say(f"error: {error}", 1)
    except Terminated:
        return _say(f"terminated{then}", 143)
    except KeyboardInterrupt:
        return _say(f"interrupted{then}", 130)
    except BrokenPipeError:
        # The reader of a pipe left; nothing is wrong here, and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        line = disk_full(error, folder or Path.cwd()) or unexpected(error, folder)
        return _say(f"error: {line}", 1)
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr, flush=True)
    return code
