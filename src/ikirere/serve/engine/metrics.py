"""What a server counts, in Prometheus' form. One registry per server, so that two can live in a process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

FIRST = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
BETWEEN = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
WHOLE = (0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.http = Counter("ikirere_http_requests", "HTTP answers", ["path", "status"], registry=r)
        self.requests = Counter("ikirere_requests", "Generations ended", ["finish_reason"], registry=r)
        self.prompt_tokens = Counter("ikirere_prompt_tokens", "Prompt tokens read", registry=r)
        self.generated_tokens = Counter("ikirere_generated_tokens", "Tokens sampled", registry=r)
        self.tool_calls = Counter("ikirere_tool_calls", "Tools run", ["tool", "outcome"], registry=r)
        self.first_token = Histogram(
            "ikirere_time_to_first_token_seconds",
            "From queueing to the first token",
            buckets=FIRST,
            registry=r,
        )
        self.per_token = Histogram(
            "ikirere_time_per_token_seconds",
            "From one sampled token of a request to the next, tools' time included",
            buckets=BETWEEN,
            registry=r,
        )
        self.duration = Histogram(
            "ikirere_request_seconds", "From queueing to the end", buckets=WHOLE, registry=r
        )
        self.waiting = Gauge("ikirere_queue_waiting", "Generations that wait for a slot", registry=r)
        self.running = Gauge("ikirere_queue_running", "Generations that hold a slot", registry=r)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
