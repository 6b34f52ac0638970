"""One verdict on a run: SHIP, or DO NOT SHIP and why not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Reason:
    """A gate, or a stage, that stands in the way. why: a verdict of a gate, or the state of a stage."""

    stage: str
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.name}: {self.why}" if self.name else f"{self.stage}: {self.why}"


@dataclass(frozen=True)
class ShipVerdict:
    """ship: every stage is done and every gate that stops has passed. blocking: what stands in the way. warnings:
    gates that warn and have not passed."""

    ship: bool
    rehearsal: bool
    blocking: tuple[Reason, ...]
    warnings: tuple[Reason, ...]

    def to_json(self) -> dict[str, Any]:
        reasons = {name: [asdict(row) for row in getattr(self, name)] for name in ("blocking", "warnings")}
        return {"verdict": self.word, "ship": self.ship, "rehearsal": self.rehearsal, **reasons}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ShipVerdict:
        """Inverse of `to_json`."""
        reasons = {name: tuple(Reason(**row) for row in values[name]) for name in ("blocking", "warnings")}
        return cls(values["ship"], values["rehearsal"], **reasons)

    @property
    def word(self) -> str:
        if self.rehearsal:
            return "REHEARSAL"
        return "SHIP" if self.ship else "DO NOT SHIP"

    def lines(self) -> list[str]:
        """The verdict and, below it, a line for each reason."""
        if self.rehearsal:
            head = "REHEARSAL: no verdict" + (
                "; a full run would still lack:"
                if self.blocking
                else "; a full run would lack nothing that is known"
            )
        else:
            head = self.word + (":" if self.blocking else "")
        return [
            head,
            *(f"  {reason}" for reason in self.blocking),
            *(f"  warning: {reason}" for reason in self.warnings),
        ]


def judge_run(stages: Iterable[Mapping[str, Any]], rehearsal: bool) -> ShipVerdict:
    """The verdict on the rows that `status` gives for the stages.

    In a rehearsal, whose gates are for the full size, only what a full run would lack counts: stages that are not
    built, and gates of finished stages that were not measured.
    """
    blocking: list[Reason] = []
    warnings: list[Reason] = []
    for stage in stages:
        name, state = str(stage["name"]), str(stage["state"])
        if state != "done" and not (rehearsal and state == "running"):
            blocking.append(Reason(name, "", state))
        for gate in stage["gates"]:
            if gate["passed"] or (rehearsal and gate["verdict"] != "NOT RUN"):
                continue
            reason = Reason(name, str(gate["name"]), str(gate["verdict"]))
            if gate["decision"] == "stop":
                blocking.append(reason)
            elif gate["on_miss"] == "warn":
                warnings.append(reason)
    return ShipVerdict(not blocking, rehearsal, tuple(blocking), tuple(warnings))
