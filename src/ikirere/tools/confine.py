"""The child's side of the sandbox: confines this process, then becomes `python -I -S -c` with the code.

Run as a script by `sandbox.py` with one argument, the JSON of `Spec`; it needs the standard library only.
Nothing of the host program is inherited but three pipes.

Order: namespaces (user where not root, mount, network, PID, IPC, UTS) -> a root folder made of a read-only
tmpfs with the interpreter and the system's libraries bound read-only, and a small writable /tmp -> an
unprivileged user -> Landlock (only where namespaces are absent) -> resource limits -> exec.
"""

# pathlib would double the time that this script takes to start.
# ruff: noqa: PTH102, PTH103, PTH110, PTH112, PTH114, PTH115, PTH116, PTH120, PTH123, PTH208, PTH211

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import stat
import struct
import sys
from typing import Any

FAILED = 113  # exit status where a protection that was asked for could not be set up
NOBODY = 65534

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE, MNT_DETACH = -100, 0x8000, 2
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
# These numbers are the same on every architecture that Linux gained them for.
SYS_MOUNT_SETATTR, SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = 442, 444, 445, 446

SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

# The last expression's value is printed as print() shows it, so that a model reads what it would copy.
DRIVER = """
import ast, sys
source, sys.argv[:] = sys.argv[1], ["-c"]
def run():
    tree = ast.parse(source, "<code>")
    last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    scope = {"__name__": "__main__"}
    exec(compile(tree, "<code>", "exec"), scope)
    value = eval(compile(last, "<code>", "eval"), scope) if last else None
    if value is not None:
        print(value)
    sys.stdout.flush()
try:
    run()
except Exception as error:
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "<code>" else line
        trace = trace.tb_next
    text = " ".join(str(getattr(error, "msg", error)).split())
    sys.stdout.flush()
    sys.stderr.write(type(error).__name__ + (": " + text if text else "") + (f" (line {line})" if line else ""))
    sys.stderr.flush()
    sys.exit(1)
"""

_libc = ctypes.CDLL(None, use_errno=True)


class CannotConfine(Exception):
    """A protection that was asked for is not to be had."""


def _call(function: str, *arguments: Any) -> int:
    """A libc call. Raises CannotConfine with the kernel's reason."""
    packed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = getattr(_libc, function)(*packed)
    if result < 0:
        raise CannotConfine(f"{function}: {os.strerror(ctypes.get_errno())}")
    return result


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    _call(
        "mount",
        source.encode(),
        target.encode(),
        kind and kind.encode(),
        flags,
        data and data.encode(),
    )


def _read_only(target: str, recursive: bool = True) -> None:
    attributes = struct.pack("4Q", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    _call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), flags, attributes, len(attributes))


def _readable() -> list[str]:
    """What the interpreter needs to see, outermost first; nothing twice."""
    wanted = [*SYSTEM, os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)]
    kept: list[str] = []
    for path in wanted:
        inside = any(path == k or path.startswith(k + "/") for k in kept)
        if os.path.exists(path) and path != "/" and not inside:
            kept.append(path)
    return kept


def _unshare() -> None:
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        try:
            _call("unshare", flags)
            return
        except CannotConfine:
            pass  # root of a container without CAP_SYS_ADMIN: a user namespace may still be had
    _call("unshare", flags | CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {user} 1"),
        ("gid_map", f"{NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as handle:
            handle.write(text)


def _new_root(folder: str, tmp_bytes: int) -> None:
    """Replace / with a read-only tmpfs that holds the interpreter, the libraries and a writable /tmp."""
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in _readable():
        target = folder + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        _mount(path, target, None, MS_BIND | MS_REC)
        _read_only(target)
    os.mkdir(folder + "/dev")
    for path in DEVICES:
        os.close(os.open(folder + path, os.O_CREAT | os.O_WRONLY))
        _mount(path, folder + path, None, MS_BIND)
    os.mkdir(folder + "/tmp")
    _mount("tmpfs", folder + "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={tmp_bytes},mode=1777")
    _read_only(folder, recursive=False)
    os.chdir(folder)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/tmp")


def _landlock(folder: str) -> None:
    """Files: read the interpreter and the libraries, write `folder`, nothing else. TCP: none, from ABI 4."""
    abi = _call("syscall", SYS_LANDLOCK_CREATE, None, 0, 1)
    bits = {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)
    every = (1 << bits) - 1
    read = 0b1101  # execute, read file, read directory
    attributes = struct.pack("Q", every)
    if abi >= 4:
        attributes += struct.pack("Q", 0b11)  # bind and connect
    if abi >= 6:
        attributes += struct.pack("Q", 0b11)  # abstract sockets and signals stay inside
    ruleset = _call("syscall", SYS_LANDLOCK_CREATE, attributes, len(attributes), 0)
    of_files = 0b110 | 1 | (1 << 14 & every)  # what may be allowed on a file that is not a directory
    for path in (*_readable(), *DEVICES, folder):
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = every if path == folder else 0b110 if path in DEVICES else read
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            allowed &= of_files
        _call("syscall", SYS_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", allowed, handle), 0)
        os.close(handle)
    _call("syscall", SYS_LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


def _threads_of(user: int) -> int:
    """Threads that a user has now: RLIMIT_NPROC counts them all where there is no namespace."""
    count = 0
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        try:
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid == user:
                count += len(os.listdir(f"/proc/{entry}/task"))
        except OSError:
            continue
    return count


def _limit(spec: dict[str, Any], processes: int) -> None:
    seconds = -(-spec["cpu_ms"] // 1000)
    for name, soft, hard in (
        ("RLIMIT_AS", spec["memory_bytes"], spec["memory_bytes"]),
        ("RLIMIT_CPU", seconds, seconds + 1),
        ("RLIMIT_FSIZE", spec["file_bytes"], spec["file_bytes"]),
        ("RLIMIT_NPROC", processes, processes),
        ("RLIMIT_NOFILE", 64, 64),
        ("RLIMIT_CORE", 0, 0),
    ):
        if hasattr(resource, name):
            resource.setrlimit(getattr(resource, name), (soft, hard))
    # RLIMIT_CPU counts whole seconds; the timer, which survives exec, keeps the milliseconds.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, spec["cpu_ms"] / 1000)


def _leave_root(user: int) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _call("prctl", option, value, 0, 0, 0)


def _become_code(spec: dict[str, Any], processes: int) -> None:
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _limit(spec, processes)
    python = spec["python"]
    os.execve(python, [python, "-I", "-S", "-c", DRIVER, spec["code"]], {})


def _wait(child: int) -> int:
    """The child's exit status as a shell gives it; other orphans are reaped on the way."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _in_namespaces(spec: dict[str, Any]) -> None:
    _unshare()
    outer = os.fork()
    if outer:
        os._exit(_wait(outer))
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _new_root(spec["folder"], spec["tmp_bytes"])
    # The first process of a PID namespace ignores signals that it does not handle, so the code is the second.
    worker = os.fork()
    if worker:
        os._exit(_wait(worker))
    _leave_root(spec["user"])
    _become_code(spec, spec["processes"])


def _without_namespaces(spec: dict[str, Any]) -> None:
    os.chdir(spec["folder"])
    if spec["drop_root"] and os.geteuid() == 0:
        os.chown(spec["folder"], spec["user"], spec["user"])
        _leave_root(spec["user"])
    processes = spec["processes"] + _threads_of(os.geteuid())
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    if spec["mode"] == "landlock":
        _landlock(spec["folder"])
    _become_code(spec, processes)


def main() -> None:
    """Confine this process as the first argument describes and run the code in it."""
    spec = json.loads(sys.argv[1])
    try:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if spec["mode"] == "namespaces":
            _in_namespaces(spec)
        else:
            _without_namespaces(spec)
    except (CannotConfine, OSError, ValueError, AttributeError) as error:
        sys.stderr.write(f"cannot confine: {error}")
        sys.stderr.flush()
        os._exit(FAILED)


if __name__ == "__main__":
    main()
