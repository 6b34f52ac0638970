"""The terminal chat through pipes and through a pseudo-terminal; loading; ports in use."""

from __future__ import annotations

import io
import os
import pty
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent))
from scripted_model import Scripted, small_model, small_tokenizer

import ikirere.serve.terminal as serve_terminal
from ikirere.errors import UserError
from ikirere.model.hub import save_pretrained
from ikirere.serve.engine import cpu_threads
from ikirere.serve.engine.engine import Engine
from ikirere.serve.http.api import listen, serve
from ikirere.serve.load import find_model, load_run_model, model_name, serve_settings
from ikirere.serve.terminal import Conversation, visible

SCRIPT = str(Path(__file__).parent / "scripted_model.py")


def test_on_pipes_only_answers_go_to_the_output() -> None:
    questions = "What is 4821 * 37?\n\n/reset\nhello\n/exit\nhello\n"
    done = subprocess.run(
        [sys.executable, SCRIPT, "chat"], input=questions, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "It is 178377.\nHello! How can I help?\n"
    assert "┊ 4821 * 37 needs the calculator." in done.stderr
    assert "→ calculator(4821 * 37)" in done.stderr and "← 178377" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_a_notice_comes_first_and_beside_the_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Scripted(small_tokenizer())
    monkeypatch.setattr(
        serve_terminal, "load_run_model", lambda path: (model, model.tokenizer, Path("scripted"))
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    serve_terminal.chat("scripted", notice="pretrain was made with other settings")
    shown = capsys.readouterr()
    assert shown.out == "Hello! How can I help?\n"
    assert shown.err.splitlines()[0] == "pretrain was made with other settings"


def test_the_server_says_a_notice_first_and_in_health(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(small_model(), tmp_path / "model", {})
    small_tokenizer().save(tmp_path / "model")
    health: list[dict[str, str]] = []

    def ask(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        with TestClient(server.config.app) as client:
            health.append(client.get("/health").json())

    monkeypatch.setattr(uvicorn.Server, "run", ask)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    said: list[str] = []
    serve(tmp_path, port=0, name="m", say=said.append, notice="this model is of step 40")
    assert said[0] == "this model is of step 40" and said[1].startswith("m: chat page ")
    assert health == [{"status": "ok", "model": "m", "notice": "this model is of step 40"}]


class Terminal:
    """A chat in a pseudo-terminal."""

    def __init__(self, delay: float) -> None:
        self.master, slave = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            [sys.executable, SCRIPT, "chat", str(delay)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            preexec_fn=_own_terminal,
        )
        os.close(slave)
        self.seen = ""

    def until(self, text: str, seconds: float = 60) -> str:
        """Read on until `text` comes; what came since the last call."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


def _own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    chat = Terminal(delay=0.03)
    yield chat
    chat.process.kill()
    chat.process.wait()
    os.close(chat.master)


def test_in_a_terminal(terminal: Terminal) -> None:
    assert "scripted" in terminal.until("Ctrl-C stops an answer")
    terminal.type("hello\n")
    assert "Hello! How can I help?" in terminal.until("tokens/s")
    terminal.type("count\n")
    terminal.until("5 6 7")
    terminal.type("\x03")
    terminal.until("stopped; this exchange is not remembered")
    terminal.type("hello\n")
    terminal.until("Hello! How can I help?")
    terminal.type("/exit\n")
    terminal.until("\n")
    assert terminal.process.wait(20) == 0


def test_old_exchanges_are_forgotten_when_the_context_is_full() -> None:
    tokenizer = small_tokenizer()
    talk = Conversation(Engine(Scripted(tokenizer, context=200), tokenizer, max_num_seqs=1), (), 0.0, 100)
    for _ in range(10):
        assert list(talk.ask("hello"))[-1].data.text == "Hello! How can I help?"
    assert talk.forgotten > 0
    assert talk.messages[0]["role"] == "user"
    with pytest.raises(UserError, match="the context holds 200"):
        list(talk.ask("hello " * 200))
    assert list(talk.ask("hello"))[-1].data.text == "Hello! How can I help?"


def test_a_model_cannot_steer_the_terminal() -> None:
    assert visible("a\x1b[2Jb\x07\x9b\n\té☀") == "a�[2Jb��\n\té☀"


def test_loading(tmp_path: Path) -> None:
    tokenizer, model = small_tokenizer(), small_model()
    run = tmp_path / "demo"
    for stage in ("pretrain", "sft"):
        save_pretrained(model, run / stage / "model")
        tokenizer.save(run / stage / "model")
    found, loaded, folder = load_run_model(run)
    assert folder == run / "sft" / "model" and model_name(folder) == "demo"
    assert found.config == model.config and loaded.sha256 == tokenizer.sha256
    assert (
        find_model(run / "pretrain") == find_model(run / "pretrain" / "model") == run / "pretrain" / "model"
    )
    assert serve_settings(run).port == 8000
    with pytest.raises(UserError, match="no such folder"):
        find_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no model there"):
        find_model(tmp_path)
    save_pretrained(small_model(vocabulary=300), run / "dpo" / "model")
    tokenizer.save(run / "dpo" / "model")
    with pytest.raises(UserError, match="do not belong together"):
        load_run_model(run)


def test_the_number_of_threads_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model, count = small_model(), [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: count[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: count.__setitem__(0, number))
    for costs, chosen in (({1: 1.0, 4: 0.5}, 4), ({1: 1.0, 4: 0.95}, 1), ({1: 1.0, 4: 9.0}, 1)):
        count[0] = 4
        monkeypatch.setattr(cpu_threads, "_seconds", lambda step, costs=costs: costs[count[0]])
        assert cpu_threads.fit_threads(model, 2) == count[0] == chosen
    monkeypatch.undo()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert cpu_threads.fit_threads(model, 3) in (1, 2)
    finally:
        torch.set_num_threads(before)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    save_pretrained(small_model(), tmp_path / "model")
    small_tokenizer().save(tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use"):
            serve(tmp_path, "127.0.0.1", port)
    with pytest.raises(UserError, match=r"cannot listen on 203\.0\.113\.1"):
        listen("203.0.113.1", 0)
    with pytest.raises(UserError, match="cannot listen"):
        listen("127.0.0.1", 70000)
