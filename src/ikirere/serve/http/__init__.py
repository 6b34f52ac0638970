"""The HTTP server: the OpenAI-compatible API, the chat page, metrics."""
