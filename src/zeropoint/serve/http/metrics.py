"""The metrics of `/metrics`. They have the names of vLLM's metrics, so that dashboards made for vLLM work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from zeropoint.serve.request import EngineStats, Models

_LABELS = ["model_name", "engine"]

#: Upper bounds of the histograms' buckets.
_TOKEN_COUNTS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000]
_FIRST_TOKEN_SECONDS = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
]  # fmt: skip
_TOKEN_SECONDS = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
]  # fmt: skip
_REQUEST_SECONDS = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920]


class Metrics:
    """The counters and histograms of one server."""

    def __init__(self, models: Models) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Engines(models))
        ProcessCollector(registry=self.registry)
        self.prompt_tokens = self._counter("prompt_tokens", "Number of prefill tokens processed.")
        self.generation_tokens = self._counter("generation_tokens", "Number of generation tokens processed.")
        self.success = Counter(
            "vllm:request_success",
            "Count of successfully processed requests.",
            [*_LABELS, "finished_reason"],
            registry=self.registry,
        )
        self.prompt_lengths = self._histogram(
            "request_prompt_tokens", "Prefill tokens per request.", _TOKEN_COUNTS
        )
        self.answer_lengths = self._histogram(
            "request_generation_tokens", "Generated tokens per request.", _TOKEN_COUNTS
        )
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "Time to first token in seconds.", _FIRST_TOKEN_SECONDS
        )
        self.between_tokens = self._histogram(
            "inter_token_latency_seconds", "Inter-token latency in seconds.", _TOKEN_SECONDS
        )
        self.per_token = self._histogram(
            "request_time_per_output_token_seconds",
            "Time per output token per request in seconds.",
            _TOKEN_SECONDS,
        )
        self.request = self._histogram(
            "e2e_request_latency_seconds", "End-to-end request latency in seconds.", _REQUEST_SECONDS
        )

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(f"vllm:{name}", about, _LABELS, registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"vllm:{name}", about, _LABELS, registry=self.registry, buckets=buckets)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class Timer:
    """Measures one engine request, from its submission to its end."""

    def __init__(self, metrics: Metrics, model: str, prompt_tokens: int) -> None:
        self._metrics, self._labels = metrics, (model, "0")
        self._prompt_tokens = prompt_tokens
        self._start = self._last = time.perf_counter()
        self._first: float | None = None
        self._tokens = 0
        self._between = metrics.between_tokens.labels(*self._labels)
        self._generated = metrics.generation_tokens.labels(*self._labels)

    def tokens(self, count: int) -> None:
        """Count new tokens that arrived together, and the time since the ones before."""
        if not count:
            return
        now = time.perf_counter()
        if self._first is None:
            self._first = now
            self._metrics.first_token.labels(*self._labels).observe(now - self._start)
            self._metrics.prompt_tokens.labels(*self._labels).inc(self._prompt_tokens)
        else:
            self._between.observe((now - self._last) / count)
        self._last = now
        self._tokens += count
        self._generated.inc(count)

    def finished(self, reason: str) -> None:
        """Count the request's end. `reason` is "stop", "length", "abort" or another word."""
        now = time.perf_counter()
        self._metrics.success.labels(*self._labels, reason).inc()
        self._metrics.request.labels(*self._labels).observe(now - self._start)
        self._metrics.prompt_lengths.labels(*self._labels).observe(self._prompt_tokens)
        self._metrics.answer_lengths.labels(*self._labels).observe(self._tokens)
        if self._first is not None and self._tokens > 1:
            self._metrics.per_token.labels(*self._labels).observe(
                (self._last - self._first) / (self._tokens - 1)
            )


class _Engines(Collector):
    """Reads the state of the engines each time that the metrics are requested."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """Yield each metric, with one value for each model."""
        models = self._models.by_name
        stats = {name: model.stats() for name, model in models.items()}
        for name, (about, value) in _GAUGES.items():
            yield _filled(GaugeMetricFamily(f"vllm:{name}", about, labels=_LABELS), stats, value)
        for name, (about, value) in _COUNTERS.items():
            yield _filled(CounterMetricFamily(f"vllm:{name}", about, labels=_LABELS), stats, value)
        memory = GaugeMetricFamily(
            "zeropoint:model_memory_bytes",
            "Bytes of the weights and the key-value cache.",
            labels=["model_name"],
        )
        for name, model in models.items():
            memory.add_metric([name], model.memory_bytes)
        yield memory


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily,
    stats: Mapping[str, EngineStats],
    value: Callable[[EngineStats], float],
) -> Metric:
    """Add the value of each model to a metric; return the metric."""
    for name, state in stats.items():
        family.add_metric([name, "0"], value(state))
    return family


def _cache_share(stats: EngineStats) -> float:
    """Return the used share of the key-value cache, 0 to 1."""
    return (stats.pages - stats.free_pages) / stats.pages if stats.pages else 0.0


_Values = Mapping[str, tuple[str, Callable[[EngineStats], float]]]
_GAUGES: _Values = {
    "num_requests_running": ("Number of requests in model execution batches.", lambda s: s.running),
    "num_requests_waiting": ("Number of requests waiting to be processed.", lambda s: s.waiting),
    "kv_cache_usage_perc": ("KV-cache usage. 1 means 100 percent usage.", _cache_share),
}
_COUNTERS: _Values = {
    "prefix_cache_queries": (
        "Prefix cache queries, in number of queried tokens.",
        lambda s: s.prefix_queries,
    ),
    "prefix_cache_hits": ("Prefix cache hits, in number of cached tokens.", lambda s: s.prefix_hits),
    "num_preemptions": ("Cumulative number of preemptions from the engine.", lambda s: s.preemptions),
}
