"""Tools that a model may call: registry, calculator, sandboxed Python."""
