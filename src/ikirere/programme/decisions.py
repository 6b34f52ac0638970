"""What becomes of a stage's folder: kept, continued, measured again, rebuilt (the old one set aside), or asked about.

| its folder | settings and inputs as recorded | others |
|---|---|---|
| done | kept; measured again where only `measuring` changed or a file is damaged | cheap: set aside and rebuilt; expensive: asked |
| begun | continued, whatever the code is now | as above |
| not there | begun; what was set aside with these settings comes back | begun |

Expensive is what took ten minutes or more. In a terminal the user is asked; elsewhere the command is refused with the
changes and the two ways on: `--rebuild STAGE`, or `--go-on` for a training. Nothing is deleted either way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from ikirere.common.checkpoints import catalogue
from ikirere.errors import UserError
from ikirere.programme import result, set_aside
from ikirere.programme.identity import NAME as IDENTITY
from ikirere.programme.identity import Change, Identity, Record, plain, read_record
from ikirere.programme.ledger import Event, spent_seconds
from ikirere.programme.progress import clock
from ikirere.programme.set_aside import Aside
from ikirere.programme.stage import Stage

EXPENSIVE_SECONDS = 600.0


class Action(StrEnum):
    KEEP = "keep"
    ADOPT = "adopt"  # done as its folder records, though the ledger lacks the line
    START = "start"
    CONTINUE = "continue"
    MEASURE = "measure"
    RESTORE = "restore"
    REBUILD = "rebuild"
    GO_ON = "go on"
    ASK = "ask"


@dataclass(frozen=True)
class Decision:
    """What to do, why in a few words, and what would be given up by it."""

    action: Action
    reason: str
    changes: tuple[Change, ...] = ()
    spent: float = 0.0
    step: int | None = None  # of the newest checkpoint
    aside: Aside | None = None  # what RESTORE brings back
    record: Record | None = None
    obstacles: tuple[str, ...] = field(default=())  # changed keys with which training cannot continue

    @property
    def can_go_on(self) -> bool:
        return self.step is not None and bool(self.changes) and not self.obstacles


def decide(
    stage: Stage,
    identity: Identity,
    run_folder: Path,
    events: list[Event],
    *,
    rebuild: bool = False,
    go_on: bool = False,
    expensive_seconds: float = EXPENSIVE_SECONDS,
) -> Decision:
    """The decision for one stage. Reads only.

    Raises UserError where `go_on` is asked for and a changed key forbids it.
    """
    folder = run_folder / stage.name
    record = read_record(folder)
    done = result.finished(events, stage.name)
    there = folder.is_dir() and any(folder.iterdir())
    spent = spent_seconds(events, stage.name, folder)
    checkpoints = catalogue(folder) if stage.trains else []
    step = checkpoints[-1].step if checkpoints else None

    if rebuild:
        return Decision(Action.REBUILD if there else Action.START, "rebuilt as asked", spent=spent, step=step)
    if not there:
        return _absent(stage, identity, run_folder, done is not None, spent >= expensive_seconds)
    if record is None:
        return _unrecorded(folder, done, spent)
    changes = tuple(record.changes(identity))
    if not changes:
        return _same(stage, identity, folder, record, done, spent, step)
    if (aside := set_aside.find(run_folder, stage.name, identity.base)) is not None:
        what = f"back to earlier settings: {aside.path.name} comes back"
        return Decision(Action.RESTORE, what, changes, spent, step, aside, record)
    obstacles = tuple(stage.can_go_on(change.key for change in changes)) if stage.trains else ()
    found = Decision(Action.ASK, _changed(changes), changes, spent, step, record=record, obstacles=obstacles)
    own = any(not change.key.startswith("inputs.") for change in changes)
    if go_on and stage.trains and step is not None and own:
        if obstacles:
            raise UserError(
                f"{stage.name}: --go-on cannot change {', '.join(obstacles)} of a training that has begun; "
                f"--rebuild {stage.name} trains again and sets what is there aside"
            )
        return Decision(Action.GO_ON, _changed(changes), changes, spent, step, record=record)
    if spent < expensive_seconds or stage.reads_results:
        return Decision(Action.REBUILD, _changed(changes), changes, spent, step, record=record)
    return found


def _absent(stage: Stage, identity: Identity, run_folder: Path, was_done: bool, expensive: bool) -> Decision:
    if (aside := set_aside.find(run_folder, stage.name, identity.base)) is not None:
        return Decision(Action.RESTORE, f"{aside.path.name} comes back", aside=aside)
    if was_done and expensive:
        folder = run_folder / stage.name
        raise UserError(
            f"{folder}: is gone, and the ledger holds it as done; put the folder back, or give "
            f"--rebuild {stage.name}"
        )
    return Decision(Action.START, "starts, its folder is gone" if was_done else "starts")


def _unrecorded(folder: Path, done: Event | None, spent: float) -> Decision:
    """A folder without a readable identity.json: made by an earlier version of the foundry, or damaged."""
    if (
        done is not None
        and result.damage(folder, done["artifacts"]) is None
        and (folder / result.NAME).is_file()
    ):
        return Decision(
            Action.KEEP, f"kept; {IDENTITY} is missing, so its settings cannot be compared", spent=spent
        )
    return Decision(Action.REBUILD, f"{IDENTITY} is missing or damaged", spent=spent)


def _same(
    stage: Stage,
    identity: Identity,
    folder: Path,
    record: Record,
    done: Event | None,
    spent: float,
    step: int | None,
) -> Decision:
    finished = record.finished
    if finished is None:
        return Decision(Action.CONTINUE, "continues", spent=spent, step=step, record=record)
    damaged = result.damage(folder, finished["artifacts"])
    if damaged is None and result.fault(folder, finished["result"]):
        damaged = result.NAME
    if damaged is not None:
        if stage.trains or damaged == result.NAME:
            reason = f"{damaged} is gone or was altered: written again from what is there"
            return Decision(Action.MEASURE, reason, spent=spent, step=step, record=record)
        return Decision(Action.REBUILD, f"{damaged} is gone or of another size", spent=spent, record=record)
    if record.measuring != plain(identity.measuring):
        return Decision(
            Action.MEASURE, "measured again (other questions)", spent=spent, step=step, record=record
        )
    action = Action.KEEP if done is not None else Action.ADOPT
    return Decision(action, "unchanged, kept", spent=spent, step=step, record=record)


def _changed(changes: tuple[Change, ...]) -> str:
    return "; ".join(str(change) for change in changes[:4]) + (
        f"; {len(changes) - 4} more" if len(changes) > 4 else ""
    )


def question(stage: str, decision: Decision) -> str:
    """The question about an expensive stage, or the refusal where nobody can be asked."""
    lines = [f"{stage}: {clock(decision.spent)} of work were done with other settings"]
    if decision.step is not None:
        lines[0] += f" (step {decision.step})"
    lines += [f"  {change}" for change in decision.changes[:20]]
    if len(decision.changes) > 20:
        lines.append(f"  and {len(decision.changes) - 20} more")
    lines.append(f"  --rebuild {stage}: rebuilds it; what is there is set aside, not deleted")
    if decision.can_go_on:
        lines.append(f"  --go-on: continues from step {decision.step} with the new settings, recorded")
    elif decision.step is not None and decision.obstacles:
        lines.append(
            f"  --go-on is not possible: {', '.join(decision.obstacles)} cannot change during training"
        )
    return "\n".join(lines)
