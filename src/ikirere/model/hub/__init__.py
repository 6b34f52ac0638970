"""Import and export: models as Hugging Face folders."""

from ikirere.model.hub.folder import (
    hub_config,
    hub_name,
    load_config,
    load_model,
    load_pretrained,
    save_pretrained,
)
from ikirere.model.hub.registry import notice, why_no_public_class

__all__ = [
    "hub_config",
    "hub_name",
    "load_config",
    "load_model",
    "load_pretrained",
    "notice",
    "save_pretrained",
    "why_no_public_class",
]
