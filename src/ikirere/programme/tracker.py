"""Training curves for people who look on: Trackio (local files), Weights & Biases, or nothing.

A tracker is a convenience. Whatever goes wrong with it is reported in one line and it is switched off; the run
continues. The exception is wandb asked for and not installed or without a key: the user asked for something
that cannot be had, and is refused before any work.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from ikirere.errors import UserError
from ikirere.recipe import sections

REMOTE_SETTINGS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DATASET_ID", "TRACKIO_BUCKET_ID")


class _Backend(Protocol):
    def log(self, values: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


@contextlib.contextmanager
def _local_only(folder: Path) -> Iterator[None]:
    """Trackio reads its paths from the environment; here they are this run's folder and no server."""
    kept = {name: os.environ.pop(name) for name in REMOTE_SETTINGS if name in os.environ}
    os.environ["TRACKIO_DIR"] = str(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.environ.update(kept)


class _Trackio:
    def __init__(self, folder: Path, project: str, run: str, config: dict[str, Any]) -> None:
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with _local_only(folder):
            import trackio
            from trackio import utils

            if Path(utils.TRACKIO_DIR) != folder:
                raise RuntimeError(f"this process already writes to {utils.TRACKIO_DIR}")
            logging.getLogger("httpx").setLevel(logging.WARNING)
            self._run = trackio.init(
                project=project, name=run, config=config, resume="allow", embed=False, auto_log_gpu=False,
                auto_log_cpu=False,
            )  # fmt: skip

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def finish(self) -> None:
        import trackio

        # The module's own `finish` also forgets the run, which would else be finished again, aloud, at exit.
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()


class _Wandb:
    def __init__(self, key: str, folder: Path, project: str, run: str, config: dict[str, Any]) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        wandb.login(key=key)
        self._run = wandb.init(
            project=project, name=run, dir=str(folder), config=config, resume="allow", id=run
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def finish(self) -> None:
        self._run.finish()


def check(config: sections.Tracker) -> None:
    """Raises UserError where the recipe asks for wandb and it cannot be had."""
    if config.kind != "wandb":
        return
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            "tracker.kind: 'wandb' is not installed; pip install 'ikirere[wandb]', or set tracker.kind to trackio or none"
        )
    if not (config.key or os.environ.get("WANDB_API_KEY")):
        raise UserError(
            "tracker.key: wandb needs a key here or in WANDB_API_KEY; or set tracker.kind to trackio or none"
        )


class Tracker:
    """Opens its backend at the first value, so that runs without training never load one."""

    def __init__(
        self,
        config: sections.Tracker,
        folder: Path,
        run: str,
        settings: dict[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self._config, self._folder, self._run, self._settings, self._say = config, folder, run, settings, say
        self._backend: _Backend | None = None
        self._off = config.kind == "none"

    def _open(self) -> _Backend:
        if self._config.kind == "wandb":
            key = self._config.key or os.environ["WANDB_API_KEY"]
            return _Wandb(key, self._folder, self._config.project, self._run, self._settings)
        return _Trackio(self._folder, self._config.project, self._run, self._settings)

    def _fail(self, error: Exception) -> None:
        first = str(error).strip().splitlines()
        self._say(f"tracker {self._config.kind} off: {first[0] if first else type(error).__name__}")
        self._off = True

    def log(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        """Values at a step, named `prefix/name`. Never raises."""
        if self._off:
            return
        try:
            if self._backend is None:
                self._backend = self._open()
            self._backend.log({f"{prefix}/{name}": float(value) for name, value in values.items()}, step)
        except Exception as error:  # whatever a third party raises must not end a training run
            self._fail(error)

    def close(self) -> None:
        """Write out what is waiting. Never raises."""
        if self._backend is None or self._off:
            return
        try:
            self._backend.finish()
        except Exception as error:
            self._fail(error)
        self._off = True
