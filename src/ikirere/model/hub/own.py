"""Models that no public class can hold: a folder of our own, opened by `hub.load_pretrained`, and by transformers with
the classes in `hub.auto`.

config.json holds the whole `ModelConfig` under the key `ikirere`; weights have our names after the prefix `model.`. The
folder also holds a small file that transformers reads with `trust_remote_code=True`; it needs this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.hub.formats import Weight, same

REMOTE = "modeling_ikirere.py"
REMOTE_TEXT = '''"""Opens this folder in transformers; the package `ikirere` must be installed."""
from ikirere.model.hub.auto import (
    IkirereConfig,
    IkirereForCausalLM,
    IkirereForMaskedLM,
    IkirereRecursiveConfig,
)
'''
PREFIX = "model."


class Own:
    """`IkirereForCausalLM` for decoders, `IkirereForMaskedLM` for recursive models, which see both ways and fill blanks
    (transformers' AutoModelForCausalLM opens both)."""

    def __init__(self, family: str, model_type: str, config: str, architecture: str) -> None:
        self.family, self.model_type, self.config, self.architecture = (
            family,
            model_type,
            config,
            architecture,
        )

    def refuses(self, config: ModelConfig) -> str | None:
        if config.family != self.family:
            return f"model.family {config.family!r}: {self.family!r} is needed"
        return None

    def to_hub(self, config: ModelConfig) -> dict[str, Any]:
        module = REMOTE.removesuffix(".py")
        classes = {"AutoConfig": self.config, "AutoModelForCausalLM": self.architecture}
        return {
            "ikirere": config.to_dict(),
            "auto_map": {auto: f"{module}.{name}" for auto, name in classes.items()},
        }

    def from_hub(self, path: Path, values: Mapping[str, Any]) -> ModelConfig:
        held = values.get("ikirere")
        if not isinstance(held, dict):
            raise UserError(
                f"{path}: the key ikirere is {held!r}; a mapping with the model's shape is needed"
            )
        return ModelConfig.from_dict(held)

    def weights(self, config: ModelConfig) -> list[Weight]:
        from ikirere.model.build import on_meta

        return [same(name, PREFIX + name) for name in on_meta(config).state_dict()]


OWN = (
    Own("decoder", "ikirere", "IkirereConfig", "IkirereForCausalLM"),
    Own("recursive", "ikirere_recursive", "IkirereRecursiveConfig", "IkirereForMaskedLM"),
)
