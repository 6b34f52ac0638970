"""Held-out text measured in the middle of training, as it is at the step of each milestone.

A milestone is measured at the sequence length of the phase that its step belongs to, on the domains that this phase
trains on, and beside an earlier milestone on the same documents at that one's length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ikirere.common.files import read_rows, write_rows
from ikirere.pretrain.curriculum import CurriculumPhase, phase_at
from ikirere.pretrain.evaluate import chosen_documents
from ikirere.pretrain.family import Family, Figure, Row
from ikirere.recipe.sections import Milestone
from ikirere.tokens.shards import Shard

FOLDER = "milestones"


class Milestones:
    """The milestones of a training, by rising step: measures them, and reads and writes their rows.

    Files below the stage's folder: milestones/<name>.jsonl, the family's held-out rows with the step; and
    milestones/<name>.ratio.jsonl, `Family.compared` rows with the name of the milestone that is compared to.
    """

    def __init__(
        self,
        family: Family,
        phases: Sequence[CurriculumPhase],
        heldout: Mapping[str, Shard],
        folder: Path,
    ) -> None:
        self.family, self.phases, self.heldout, self.folder = family, phases, heldout, folder
        self.all = sorted(family.recipe.pretrain.milestones, key=lambda milestone: milestone.step)

    def raw(self, milestone: Milestone, ratio: bool = False) -> str:
        """The file of a milestone's rows, relative to the stage's folder."""
        return f"{FOLDER}/{milestone.name}{'.ratio' if ratio else ''}.jsonl"

    def rows(self, milestone: Milestone, ratio: bool = False) -> list[Row]:
        """A milestone's rows; [] where it was not measured, or was measured at another step."""
        path = self.folder / self.raw(milestone, ratio)
        rows = read_rows(path) if path.exists() else []
        return rows if all(row.get("step", milestone.step) == milestone.step for row in rows) else []

    def compared_to(self, milestone: Milestone) -> Milestone | None:
        """The measured milestone that this one is compared to: the one it names, else the one before it."""
        named = milestone.compare_to
        before = self.all[: self.all.index(milestone)]
        found = [other for other in before if named in (None, other.name)]
        return found[-1] if found and self.rows(found[-1]) else None

    def measure(self, milestone: Milestone, model: Any) -> list[Row]:
        """Measures a model at the milestone's step and writes its files; returns the rows."""
        heldout, length = self._asked(milestone)
        rows = self.family.heldout_rows(model, heldout, length)
        self._write(milestone, rows, False)
        self._write(milestone, self._ratio(milestone, model, rows), True)
        return rows

    def _ratio(self, milestone: Milestone, model: Any, rows: list[Row]) -> list[Row]:
        other = self.compared_to(milestone)
        before = self.rows(other) if other is not None else []
        if other is None or not self.family.ratios or "sequence_length" not in before[0]:
            return []
        if before[0]["sequence_length"] != rows[0]["sequence_length"]:
            shared = {row["domain"] for row in before}
            heldout = {d: shard for d, shard in self._asked(milestone)[0].items() if d in shared}
            rows = self.family.heldout_rows(model, heldout, before[0]["sequence_length"])
        return [{**row, "compared_to": other.name} for row in self.family.compared(rows, before)]

    def _write(self, milestone: Milestone, rows: Sequence[Row], ratio: bool) -> None:
        path = self.folder / self.raw(milestone, ratio)
        if ratio and not rows:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, ({"step": milestone.step, **row} for row in rows))

    def _asked(self, milestone: Milestone) -> tuple[dict[str, Shard], int]:
        """The held-out text that a milestone is measured on, and the sequence length in tokens."""
        phase = phase_at(self.phases, milestone.step - 1)
        heldout = {d: shard for d, shard in self.heldout.items() if phase.mixture.get(d, 0) > 0}
        return heldout, phase.sequence_length

    def figures(self, milestone: Milestone) -> list[tuple[Figure, str]]:
        """The metrics of a milestone's files, named <name>@<milestone>, and the file of each."""
        found: list[tuple[Figure, str]] = []
        if rows := self.rows(milestone):
            domains = list(dict.fromkeys(row["domain"] for row in rows))
            found += [(figure, self.raw(milestone)) for figure in self.family.figures(domains)]
        if self.rows(milestone, ratio=True):
            found += [(figure, self.raw(milestone, ratio=True)) for figure in self.family.ratios]
        return [(replace(figure, name=f"{figure.name}@{milestone.name}"), raw) for figure, raw in found]

    def measure_outdated(self, model_at: Callable[[Milestone], Any | None]) -> list[Milestone]:
        """Measures again where the recipe now asks for other text or another comparison; returns these milestones.

        model_at: the model as it was at a milestone's step, or None where it is not kept; the earlier rows stay then.
        """
        done: list[Milestone] = []
        for milestone in self.all:
            if self._is_current(milestone) and self.compared_to(milestone) not in done:
                continue
            if (model := model_at(milestone)) is not None:
                self.measure(milestone, model)
                done.append(milestone)
        return done

    def _is_current(self, milestone: Milestone) -> bool:
        heldout, length = self._asked(milestone)
        size = self.family.recipe.pretrain.evaluate_bytes
        wanted = {(d, shard.id(i)) for d, shard in heldout.items() for i in chosen_documents(shard, size)}
        rows = self.rows(milestone)
        if {(row["domain"], row["document"]) for row in rows} != wanted:
            return False
        if {row.get("sequence_length") for row in rows} - {length}:
            return False
        other = self.compared_to(milestone) if self.family.ratios else None
        names = {row["compared_to"] for row in self.rows(milestone, ratio=True)}
        return names <= ({other.name} if other else set()) and (
            bool(names) or other is None or not ({row["domain"] for row in self.rows(other)} & set(heldout))
        )
