"""The sections of a recipe: data, tokenizer, training, alignment, evaluation, serving.

Each class is one mapping of the YAML file. Unknown keys are refused. Sizes are in tokens, steps or
bytes as the key's name or its description gives.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ikirere.recipe.data import Data, Hub, Local, PythonEnvironment, Source
from ikirere.recipe.section import WATCHING, Fraction, Positive, Section, Weights

__all__ = [
    "Data", "Dpo", "Evaluate", "Fraction", "Gate", "Hardware", "Hub", "Local", "Milestone", "Optimizer", "Phase",
    "Positive", "Pretrain", "PythonEnvironment", "Schedule", "Section", "Serve", "Sft", "Source", "Stated",
    "Tokenizer", "Tracker", "Training", "Weights",
]  # fmt: skip

# ---------------------------------------------------------------- tokenizer


class Tokenizer(Section):
    kind: Literal["unigram", "bpe", "pretrained"]
    vocab_size: Positive = Field(description="all ids, special tokens included")
    pretrained: str | None = Field(
        default=None, description="kind pretrained: hub name, folder or tokenizer.json"
    )
    train_bytes: Positive = 20_000_000
    mixture: Weights = Field(
        default={}, description="share of training bytes by domain; empty: as the data is"
    )
    split_digits: bool = True
    indent_transform: bool = Field(
        default=False,
        description="unigram: line ends and indentation as <nl>, <tab>, <indent>, <dedent>; reversible",
    )
    preserve: tuple[str, ...] = ("_", "/", ".", "::", "()", "{}", "[]", ";", ",")

    @model_validator(mode="after")
    def _named(self) -> Tokenizer:
        if (self.kind == "pretrained") != (self.pretrained is not None):
            raise ValueError("`pretrained` is given exactly when kind is 'pretrained'")
        if self.indent_transform and self.kind != "unigram":
            raise ValueError(
                "`indent_transform` needs kind 'unigram': other kinds have pieces that span lines"
            )
        return self


# ---------------------------------------------------------------- training


Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Section):
    name: Literal["adamw", "muon"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = Field(
        description="peak rate of AdamW (with muon: of embeddings, norms, head)"
    )
    muon_lr: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="peak rate of Muon on 2-D hidden weights"
    )
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: Annotated[float, Field(ge=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    momentum: Fraction = 0.95
    grad_clip: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="global gradient norm; 0 switches it off"
    )

    @model_validator(mode="after")
    def _muon(self) -> Optimizer:
        if self.name == "muon" and self.muon_lr is None:
            raise ValueError("optimizer 'muon' needs `muon_lr`")
        return self


class Schedule(Section):
    name: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup: Annotated[float, Field(ge=0)] = Field(
        default=0.02, description="below 1: a fraction of all steps; else steps"
    )
    decay: Annotated[float, Field(ge=0)] = Field(
        default=0.2, description="wsd only: below 1: a fraction of all steps; else steps"
    )
    min_ratio: Fraction = Field(default=0.0, description="last rate over peak rate")


class Phase(Section):
    """A stretch of pretraining with one sequence length, batch, mixture and RoPE base."""

    name: str
    steps: Positive
    sequence_length: Positive
    batch_size: Positive = Field(description="sequences per optimiser step, over all devices")
    mixture: Weights = Field(description="share of tokens by domain")
    rope_theta: Annotated[float, Field(gt=0)] | None = None
    attention: str | None = Field(
        default=None, description="layer pattern of this phase where it differs from the model's"
    )
    long_fraction: Fraction | None = Field(
        default=None, description="share of tokens from documents longer than a quarter of the length"
    )
    context_parallel: Positive = Field(
        default=1, description="devices that share one sequence", json_schema_extra=WATCHING
    )


class Milestone(Section):
    """An evaluation in the middle of pretraining. Its metrics are named `<metric>@<name>`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    step: Positive
    compare_to: str | None = Field(
        default=None,
        description="earlier milestone of which bits_per_byte_ratio@<name> is the ratio; default: the one before",
    )


class Training(Section):
    """What every training stage shares. One loop reads it."""

    optimizer: Optimizer
    schedule: Schedule = Schedule()
    micro_batch_size: Positive | None = Field(
        default=None,
        description="sequences per forward pass and device; default: all",
        json_schema_extra=WATCHING,
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = "auto"
    compile: Literal["auto", "on", "off"] = Field(default="auto", json_schema_extra=WATCHING)
    activation_checkpointing: bool = Field(default=False, json_schema_extra=WATCHING)
    parallel: Literal["none", "ddp", "fsdp"] = Field(default="none", json_schema_extra=WATCHING)
    checkpoint_every: Positive = Field(default=500, json_schema_extra=WATCHING)
    keep_checkpoints: Positive = Field(
        default=2,
        description="newest checkpoints kept, besides those of milestones",
        json_schema_extra=WATCHING,
    )
    log_every: Positive = Field(default=10, json_schema_extra=WATCHING)


class Pretrain(Training):
    phases: tuple[Phase, ...] = Field(min_length=1)
    packing: Literal["concatenate", "best-fit"] = Field(
        default="concatenate",
        description="how documents fill rows: end to end, or whole where they fit (Ding et al. 2024)",
    )
    z_loss: Annotated[float, Field(ge=0)] = Field(default=0.0, description="weight of logsumexp(logits)^2")
    evaluate_every: Positive | None = Field(default=None, json_schema_extra=WATCHING)
    evaluate_bytes: Positive = Field(
        default=400_000,
        description="held-out bytes per domain for bits per byte",
        json_schema_extra=WATCHING,
    )
    milestones: tuple[Milestone, ...] = Field(
        default=(),
        description="evaluations during training; their checkpoints are kept",
        json_schema_extra=WATCHING,
    )

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def tokens(self) -> int:
        return sum(p.steps * p.batch_size * p.sequence_length for p in self.phases)


class Sft(Training):
    steps: Positive
    batch_size: Positive = Field(description="packed sequences per optimiser step")
    sequence_length: Positive
    rows: Positive = Field(description="training conversations generated or read")
    mixture: Weights = Field(
        description="share of rows by kind: calculator, units, strings, documents, chat, direct"
    )
    rows_files: tuple[str, ...] = Field(
        default=(), description="further JSONL files of `messages` + `tools` rows"
    )


class Dpo(Training):
    steps: Positive
    batch_size: Positive = Field(description="pairs per optimiser step")
    sequence_length: Positive
    pairs: Positive
    heldout_pairs: Positive = 200
    beta: Annotated[float, Field(gt=0)] = 0.1
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    on_policy: Fraction = Field(
        default=0.5, description="share of pairs whose rejected answer the SFT model wrote itself"
    )
    sft_weight: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="weight of the chosen answer's mean negative log-likelihood added to the loss",
    )
    reference_device: Literal["same", "cpu"] = "same"
    pairs_files: tuple[str, ...] = ()


# ---------------------------------------------------------------- evaluation, serving, report


class Evaluate(Section):
    questions: dict[str, Positive] = Field(default={}, description="held-out questions by kind")
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_new_tokens: Positive = 128
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    compare_to: str | None = Field(
        default=None,
        description="milestone of pretraining that perplexity_ratio@<name> is over; default: the pretrained model",
    )


class Serve(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    max_model_len: Positive | None = Field(
        default=None, description="longest prompt + answer in tokens; default: the model's"
    )
    max_num_seqs: Positive = Field(default=4, description="requests decoded together")
    kv_cache_bits: Literal[4, 8, 16, 32] = 16
    latency_p95_ms: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="wanted time per token of 95 in 100, max_num_seqs requests of max_model_len at once; "
        "the planner compares it with what the memory's bandwidth allows",
    )
    export: tuple[Literal["safetensors", "gguf-q8_0", "gguf-q4_k_m", "tensorrt-llm"], ...] = ("safetensors",)


class Tracker(Section):
    kind: Literal["trackio", "wandb", "none"] = "trackio"
    project: str = "ikirere"
    key: str | None = Field(
        default=None, description="wandb API key; WANDB_API_KEY is read where this is empty"
    )


class Gate(Section):
    """One line of the ship gates. A gate passes or it does not: what was not measured has not passed."""

    name: str
    metric: str = Field(description="a metric that the stage makes")
    op: Literal[">=", "<=", ">", "<", "=="]
    target: float
    on_miss: Literal["stop", "warn", "record"] = Field(
        default="warn",
        description="stop: the run ends, DO NOT SHIP; warn: listed beside the verdict; record: in the table only",
    )
    inside_noise: Literal["pass", "miss"] | None = Field(
        default=None,
        description="what a target inside the noise band counts as; default: miss where on_miss is stop, else pass",
    )
    stop_beyond: float | None = Field(
        default=None,
        description="of a milestone: go at the target, investigate up to this value, stop beyond it",
    )

    @model_validator(mode="after")
    def _band(self) -> Gate:
        if self.stop_beyond is None:
            return self
        if self.op == "==" or (
            self.stop_beyond < self.target if "<" in self.op else self.stop_beyond > self.target
        ):
            raise ValueError(
                f"stop_beyond {self.stop_beyond:g} must lie on the side of the target {self.target:g} that misses "
                f"`{self.op}`"
            )
        return self


class Hardware(Section):
    device: str = Field(
        description="cpu, or a card of the planner's table: h100-80gb, h200, t4, rtx3060-12gb, ..."
    )
    count: Positive = 1
    mfu: Fraction = Field(default=0.4, description="model FLOPs utilisation assumed for hours")
    precision: Literal["fp32", "bf16", "fp16", "fp8"] = "bf16"


class Stated(Section):
    """What the programme's specification claims, for the planner to check against arithmetic."""

    parameters: float | None = None
    tokens: float | None = None
    tokenizer_vocabulary: Positive | None = None
    throughput_tokens_per_second: float | None = None
    throughput_steps_per_second: float | None = Field(default=None, description="in the first phase")
    phase_steps_per_second: dict[str, float] = Field(default={}, description="by name of the phase")
    days: float | None = None
    checkpoints: dict[str, float] = Field(default={}, description="stated tokens seen after `step_<n>`")
    notes: tuple[str, ...] = Field(default=(), description="claims that no key holds; `plan` prints them")
