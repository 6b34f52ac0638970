"""The engine's Prometheus metrics. One registry per engine, so that a process can hold two."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
PER_TOKEN_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
REQUEST_BUCKETS = (0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters, gauges and histograms of one engine; others may add theirs to `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("ikirere_requests", "Generations ended", ["finish_reason"], registry=r)
        self.prompt_tokens = Counter("ikirere_prompt_tokens", "Prompt tokens read", registry=r)
        self.generated_tokens = Counter("ikirere_generated_tokens", "Tokens sampled", registry=r)
        self.tool_calls = Counter("ikirere_tool_calls", "Tools run", ["tool", "outcome"], registry=r)
        self.first_token = Histogram(
            "ikirere_time_to_first_token_seconds",
            "From queueing to the first token",
            buckets=FIRST_TOKEN_BUCKETS,
            registry=r,
        )
        self.per_token = Histogram(
            "ikirere_time_per_token_seconds",
            "From one sampled token of a request to the next, tools' time included",
            buckets=PER_TOKEN_BUCKETS,
            registry=r,
        )
        self.duration = Histogram(
            "ikirere_request_seconds", "From queueing to the end", buckets=REQUEST_BUCKETS, registry=r
        )
        self.waiting = Gauge("ikirere_queue_waiting", "Requests that wait for a row of the batch", registry=r)
        self.running = Gauge("ikirere_queue_running", "Requests in the batch", registry=r)

    def text(self) -> bytes:
        """The Prometheus exposition format."""
        return generate_latest(self.registry)
