"""The sandbox enforces what it promises, in every mode that this machine has."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ikirere.tools import sandbox
from ikirere.tools.registry import execute

pytestmark = pytest.mark.skipif(sandbox.protection() is None, reason="no confined child process here")
FOUND = sandbox.protection()
NAMESPACES = FOUND is not None and FOUND.mode == "namespaces"
in_namespaces = pytest.mark.skipif(not NAMESPACES, reason="no namespaces here")
BOMB = """
import os, time
made = 0
try:
    while made < 500:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        made += 1
except OSError:
    pass
made
"""


def result(code: str) -> str:
    return execute("python_exec", {"code": code}).content


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("'hello'[::-1]", "olleh"),
        ("print(1)\n2 + 2", "1\n4"),
        ("x = 5", "(no output)"),
        ("None", "(no output)"),
        ("def f(n):\n    return n * 2\n\nsorted([f(3), f(1)])", "[2, 6]"),
        ("import math, json, re\nmath.factorial(10)", "3628800"),
        ("'\\u00e9' + chr(0x1F600)", "é😀"),
        ("__name__", "__main__"),
        ("1 / 0", "error: ZeroDivisionError: division by zero (line 1)"),
        ("x = 1\ny = x.z", "error: AttributeError: 'int' object has no attribute 'z' (line 2)"),
        ("def f(:", "error: SyntaxError: invalid syntax (line 1)"),
        ("import numpy", "error: ModuleNotFoundError: No module named 'numpy' (line 1)"),
        ("import sys\nsys.exit(3)", "error: ended with status 3"),
    ],
)
def test_results(code: str, expected: str) -> None:
    assert result(code) == expected


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "1")
    assert "SECRET" not in result("import os\ndict(os.environ)")
    assert result("import sys\nsys.stdin.read()") == "(no output)"


def test_an_infinite_loop_ends_by_processor_time() -> None:
    # Wall time enough for a machine that gives this process a fortieth of a core.
    ended = sandbox.run("while True: pass", replace(sandbox.Limits(), wall_ms=60_000))
    assert ended.content == "error: used more than 1500 ms of processor time"


def test_sleep_ends_by_wall_time() -> None:
    ended = sandbox.run("import time\ntime.sleep(60)", replace(sandbox.Limits(), wall_ms=700))
    assert ended.content == "error: ran longer than 700 ms"


@pytest.mark.parametrize(
    "code", ["bytearray(10**9)", "x = []\nwhile True: x.append(bytes(10**6))", "[0] * 10**9"]
)
def test_a_memory_bomb_is_an_error(code: str) -> None:
    assert result(code) == "error: MemoryError: more than 256 MB of memory"


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes")
@pytest.mark.skipif(
    FOUND is not None and "not bounded" in FOUND.absent, reason="root that cannot become another user"
)
def test_a_fork_bomb_is_bounded_and_leaves_nothing() -> None:
    begin = time.monotonic()
    made = result(BOMB)
    if NAMESPACES:
        assert int(made) <= sandbox.Limits().processes
        assert time.monotonic() - begin < 25, "the children were not killed with their parent"


def test_output_is_capped() -> None:
    text = result("print('x' * 10**7)")
    assert text.startswith("error: more than 4000 bytes of output") and len(text) < 300
    assert result("while True: print('y' * 1000)").startswith("error: more than 4000 bytes")


def test_a_file_is_capped() -> None:
    assert "File too large" in result("open('big', 'wb').write(bytes(10**8))")


@in_namespaces
def test_the_network_is_off() -> None:
    code = "import socket\nsocket.create_connection(('{}', {}), 2)"
    assert "unreachable" in result(code.format("1.1.1.1", 53))
    with subprocess.Popen(
        [sys.executable, "-c", "import socket; s=socket.create_server(('127.0.0.1',0)); "
         "print(s.getsockname()[1], flush=True); s.accept()"],
        stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        port = int(server.stdout.readline())
        assert "unreachable" in result(code.format("127.0.0.1", port))
        server.kill()


@in_namespaces
def test_files_outside_are_neither_written_nor_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    target = tmp_path / "outside"
    assert result(f"open({str(target)!r}, 'w').write('x')").startswith("error: FileNotFoundError")
    assert not target.exists()
    target.write_text("secret")
    assert result(f"open({str(target)!r}).read()").startswith("error: FileNotFoundError")
    assert result("open('/usr/ikirere', 'w')").startswith("error: ")
    assert result("open('/ikirere', 'w')").startswith("error: OSError: [Errno 30] Read-only")
    assert result(f"open({os.__file__!r}, 'a')").startswith("error: ")
    assert result("open('/tmp/a', 'w').write('abc'), open('/tmp/a').read()") == "(3, 'abc')"
    assert result("import os\nos.listdir('/tmp')") == "[]", "a run sees the files of another"


@in_namespaces
def test_it_has_no_powers_and_sees_no_processes() -> None:
    assert result("import os\nos.getuid() > 0 and os.getppid()") == "1"
    assert (
        result("import os\nos.kill(1, 9)")
        == "error: PermissionError: [Errno 1] Operation not permitted (line 2)"
    )
    if os.getpid() > 100:
        assert "No such process" in result(f"import os\nos.kill({os.getpid()}, 9)")
    mount = "import ctypes\nctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None)"
    assert result(mount) == "-1"


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux")
@pytest.mark.parametrize("mode", ["landlock", "limits"])
def test_weaker_modes_keep_their_word(mode: str, tmp_path: Path) -> None:
    target = tmp_path / "outside"
    patient = replace(sandbox.Limits(), wall_ms=20_000)
    drop = sandbox._start("1", patient, mode, True).status == 0
    first = sandbox._start("6*7", patient, mode, drop)
    if mode == "landlock" and first.status == 113:
        pytest.skip("this kernel has no Landlock")
    assert first.output == "42\n"
    assert sandbox._start("bytearray(10**9)", patient, mode, drop).error.startswith("MemoryError")
    write = sandbox._start(f"open({str(target)!r}, 'w').write('x')", patient, mode, drop)
    if mode == "landlock":
        assert "Permission denied" in write.error and not target.exists()
        inside = sandbox._start("open('a', 'w').write('x')", patient, mode, drop)
        assert inside.output == "1\n", inside.error
        tcp = "import socket\nsocket.create_connection(('127.0.0.1', 1), 1)"
        assert "denied" in sandbox._start(tcp, patient, mode, drop).error


def test_what_is_absent_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    if NAMESPACES:
        assert sandbox.describe() == ""
    monkeypatch.setattr(
        sandbox, "protection", lambda: sandbox.Protection("limits", True, sandbox._ABSENT["limits"])
    )
    assert sandbox.describe().startswith("python_exec: no namespaces") and "\n" not in sandbox.describe()
    monkeypatch.setattr(sandbox, "protection", lambda: None)
    assert "off" in sandbox.describe()
    assert sandbox.run("1").content.startswith("error: python_exec is off")


def test_long_code_is_refused() -> None:
    assert "longer than" in result("x = 1\n" * 20_000)
    assert "zero byte" in result("x = '\0'")


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result("open('/tmp/a', 'w').write('x')")
    assert list(tmp_path.iterdir()) == []
