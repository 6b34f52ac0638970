"""Parameters of a model by the formulas of its sections: equal to the built model (tested on the meta device)."""

from __future__ import annotations

from dataclasses import dataclass

from ikirere.recipe.mixers import family_of
from ikirere.recipe.schema import Model


@dataclass(frozen=True)
class Counts:
    """Numbers of weights. `matmul` is what every token is multiplied with: all matrices but the lookup."""

    total: int
    embedding: int  # the lookup table, and the head where it is untied
    layers: int
    hidden_2d: int  # matrices inside the layers, the ones Muon may own
    matmul: int

    @property
    def embedding_share(self) -> float:
        return self.embedding / self.total


def count(m: Model, patterns: tuple[str, ...] = ()) -> Counts:
    """Count a model; `patterns` are further layer patterns it trains with (phases with `attention`), of which each layer
    holds the largest."""
    of = {name: m.mixer(name).parameters(m) for p in (m.layer_pattern, *patterns) for name in m.run_as(p)}
    ways = zip(*(m.run_as(p) for p in (m.layer_pattern, *patterns)))
    mixers = [tuple(max(of[name][i] for name in names) for i in (0, 1)) for names in ways]
    kinds = [m.ffn(kind) for kind in m.ffn_kinds]
    ffns = [kind.parameters(m) for kind in kinds]
    idle = sum(weights - kind.active_parameters(m) for kind, (weights, _) in zip(kinds, ffns))
    more_tables, norms, final = family_of(m).parameters(m)
    matrices = sum(part[0] for part in (*mixers, *ffns))
    inside = matrices + sum(part[1] for part in (*mixers, *ffns)) + m.num_hidden_layers * norms
    table = m.vocab_size * m.hidden_size
    embedding = (table if m.tie_word_embeddings else 2 * table) + more_tables
    return Counts(
        total=embedding + inside + final,
        embedding=embedding,
        layers=inside,
        hidden_2d=matrices,
        matmul=matrices + table - idle,
    )
