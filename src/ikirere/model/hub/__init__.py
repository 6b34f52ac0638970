"""Import and export: models as Hugging Face folders."""

from ikirere.model.hub.folder import hub_config, hub_name, load_config, load_pretrained, save_pretrained

__all__ = ["hub_config", "hub_name", "load_config", "load_pretrained", "save_pretrained"]
