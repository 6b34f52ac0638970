"""The inference engine: sequences, batches, sampling, tool calls. It knows nothing of HTTP."""
