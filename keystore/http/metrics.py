"""What ``/metrics`` says, in Prometheus' text format. No token, key, account or plan is in it."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client.registry import Collector

from keystore.edge.decision import Reason
from keystore.http import counts
from keystore.http.counts import Counts
from keystore.http.health import Health

__all__ = ["CONTENT_TYPE", "Metrics"]

_NANO = 1e-9


class Metrics(Collector):
    """Reads the counts of all workers, and the state of the store, whenever it is asked."""

    def __init__(self, shared: Counts, health: Health) -> None:
        self._shared, self._health = shared, health
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """Return all of them."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Say nothing beforehand: to register costs no look at the store."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Make the families."""
        yield self._labelled(
            "keystore_decisions", "Checks decided.", "reason", counts.REASONS, counts.DECISIONS
        )
        yield self._labelled(
            "keystore_http_responses",
            "HTTP answers, of checks and everything else.",
            "status",
            tuple(map(str, counts.STATUSES)),
            counts.RESPONSES,
            skips_zeros=True,
        )
        yield self._labelled(
            "keystore_http_refused",
            "Requests and connections refused before they were understood.",
            "kind",
            counts.REFUSALS,
            counts.REFUSED,
        )
        yield self._latency()
        yield self._counter(
            "keystore_slow_checks",
            "Checks that looked into the store, not into memory only.",
            counts.SLOW_CHECKS,
        )
        yield self._counter(
            "keystore_worker_restarts", "Workers started again after they died.", counts.RESTARTS
        )
        yield self._gauge("keystore_http_connections", "Open connections.", counts.CONNECTIONS)
        yield self._gauge("keystore_cached_tokens", "Tokens in memory.", counts.CACHED)
        yield self._gauge(
            "keystore_usage_unflushed", "Checks counted and not yet on disk.", counts.PENDING
        )
        yield from self._state()

    def _state(self) -> Iterator[Metric]:
        state = self._health.state()
        yield GaugeMetricFamily(
            "keystore_ready", "1 if /readyz says 200.", value=state.reason is Reason.OK
        )
        yield GaugeMetricFamily(
            "keystore_usage_waiting",
            "Usage rows on disk that no target has acknowledged.",
            value=state.usage_waiting,
        )
        if state.freshness is not None:
            yield GaugeMetricFamily(
                "keystore_data_age_seconds",
                "How old the data are; 0 at an origin.",
                value=state.freshness.age_seconds,
            )
            yield GaugeMetricFamily(
                "keystore_as_of_change",
                "The origin's change that the data are as of.",
                value=state.freshness.as_of_change,
            )

    def _labelled(
        self,
        name: str,
        help_text: str,
        label: str,
        values: tuple[str, ...],
        first: int,
        *,
        skips_zeros: bool = False,
    ) -> Metric:
        family = CounterMetricFamily(name, help_text, labels=[label])
        for number, value in enumerate(values, first):
            total = self._shared.total(number)
            if total or not skips_zeros:
                family.add_metric([value], total)
        return family

    def _counter(self, name: str, help_text: str, number: int) -> Metric:
        return CounterMetricFamily(name, help_text, value=self._shared.total(number))

    def _gauge(self, name: str, help_text: str, number: int) -> Metric:
        return GaugeMetricFamily(name, help_text, value=self._shared.total(number))

    def _latency(self) -> Metric:
        so_far, buckets = 0, []
        bounds = [f"{bound * _NANO:g}" for bound in counts.BOUNDS_NS] + ["+Inf"]
        for number, bound in enumerate(bounds, counts.LATENCY):
            so_far += self._shared.total(number)
            buckets.append((bound, so_far))
        return HistogramMetricFamily(
            "keystore_http_request_seconds",
            "From the arrival of a request's last bytes until its answer is handed on.",
            buckets=buckets,
            sum_value=self._shared.total(counts.LATENCY_SUM_NS) * _NANO,
        )
