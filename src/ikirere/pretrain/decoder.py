"""Pretraining of a decoder: packed rows, cross-entropy, bits per byte of held-out documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ikirere.model.decoder import Decoder
from ikirere.pretrain.curriculum import CurriculumPhase, attention_of, theta_of
from ikirere.pretrain.evaluate import bits_per_byte, chosen_documents, compressed_bits, continuation
from ikirere.pretrain.family import EVALUATION_ROWS, Advance, Family, Figure, Row, paired
from ikirere.recipe.schema import Recipe
from ikirere.tokens.loader import PackedLoader
from ikirere.tokens.shards import Shard
from ikirere.train.callbacks import Source
from ikirere.train.objective import CrossEntropy, Objective
from ikirere.train.parallel import World

SAMPLE_PROMPT, SAMPLE_TOKENS, SAMPLES_PER_DOMAIN = 64, 64, 2


class DecoderFamily(Family):
    """Continues text; measured in bits per byte and perplexity per token. Rows: see `evaluate.bits_per_byte`."""

    name: ClassVar[str] = "decoder"
    label: ClassVar[str] = "bits per byte"
    figure: ClassVar[str] = "bits_per_byte"
    unit: ClassVar[str] = "bits per byte"
    makes: ClassVar[tuple[str, ...]] = (
        "bits_per_byte",
        "perplexity",
        "bits_per_byte/{domain}",
        "perplexity/{domain}",
    )
    ratios: ClassVar[tuple[Figure, ...]] = (Figure("bits_per_byte_ratio", "ratio", "bits", "bits_before"),)

    @staticmethod
    def check(recipe: Recipe) -> None:
        """Nothing beyond what all families are checked for."""

    def trainer(
        self,
        model: Decoder,
        phases: Sequence[CurriculumPhase],
        world: World,
        begun_with: Sequence[CurriculumPhase],
    ) -> Decoder:
        return model

    def source(
        self, trainer: Decoder, shards: Mapping[str, Shard], phases: Sequence[CurriculumPhase], world: World
    ) -> tuple[Source, list[str]]:
        packing = self.recipe.pretrain.packing
        loader = PackedLoader(shards, phases, self.recipe.seed, world.rank, world.size, packing)
        return loader, loader.notes

    def objective(self) -> Objective:
        return CrossEntropy(self.recipe.pretrain.z_loss)

    def before(self, phases: Sequence[CurriculumPhase]) -> Callable[[int, Decoder], None]:
        theta, attention = theta_of(phases), attention_of(phases)

        def bring(done: int, model: Decoder) -> None:
            if model.config.rope_theta != theta(done):
                model.set_rope_theta(theta(done))
            if model.attention != attention(done):
                model.set_attention(attention(done))

        return bring

    def finish(self, trainer: Decoder) -> None:
        trainer.set_attention(self.recipe.model.layer_pattern)

    def measured(self, trainer: Decoder) -> Decoder:
        return trainer

    def heldout_rows(
        self, model: Decoder, heldout: Mapping[str, Shard], length: int, advance: Advance | None = None
    ) -> list[Row]:
        rows: list[Row] = []
        for domain, shard in heldout.items():
            made = bits_per_byte(model, shard, self.recipe.pretrain.evaluate_bytes, length, EVALUATION_ROWS)
            rows += [{"domain": domain, "sequence_length": length, **row} for row in made]
            if advance is not None:
                advance(1)
        return rows

    def figures(self, domains: Sequence[str]) -> list[Figure]:
        found = [
            Figure("bits_per_byte", "ratio", "bits", "bytes"),
            Figure("perplexity", "exp-ratio", "nats", "tokens"),
        ]
        for domain in domains:
            found += [
                Figure(f"bits_per_byte/{domain}", "ratio", "bits", "bytes", domain),
                Figure(f"perplexity/{domain}", "exp-ratio", "nats", "tokens", domain),
            ]
        return found

    def overall(self, rows: Sequence[Row]) -> float:
        return float(sum(row["bits"] for row in rows) / max(1, sum(row["bytes"] for row in rows)))

    def compared(self, rows: Sequence[Row], before: Sequence[Row]) -> list[Row]:
        """Bits of the same documents now and before; their bytes are the same, so the ratio is that of bits per byte."""
        kept = ("domain", "document", "sequence_length", "bits")
        return [
            {**{name: row[name] for name in kept}, "bits_before": old["bits"]}
            for row, old in paired(rows, before)
        ]

    def compressors(self, heldout: Mapping[str, Shard]) -> list[Row]:
        """gzip and xz see all documents of a domain in one stream, which favours them."""
        rows: list[Row] = []
        for domain, shard in heldout.items():
            documents = chosen_documents(shard, self.recipe.pretrain.evaluate_bytes)
            text = b"\n".join(self.tokenizer.decode_bytes(shard.tokens(i).tolist()) for i in documents)
            rows += [
                {"domain": domain, "compressor": name, "bits": bits, "bytes": len(text)}
                for name, bits in compressed_bits(text).items()
            ]
        return rows

    def samples(self, model: Decoder, heldout: Mapping[str, Shard]) -> list[dict[str, Any]]:
        samples = []
        for domain, shard in heldout.items():
            for i in sorted(range(len(shard)), key=shard.id)[:SAMPLES_PER_DOMAIN]:
                ids = shard.tokens(i)[:SAMPLE_PROMPT].tolist()
                free = model.config.max_position_embeddings - len(ids)
                made = continuation(model, ids, min(SAMPLE_TOKENS, free), self.tokenizer.eos)
                texts = {"prompt": self.tokenizer.decode(ids), "continuation": self.tokenizer.decode(made)}
                samples.append({"domain": domain, **texts})
        return samples
