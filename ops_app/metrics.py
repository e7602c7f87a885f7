"""Prometheus metrics, read from rows at scrape time: web, workers and bot are separate processes with one database."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog
from django.db.models import Max
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from ops_app import clock, heartbeats, jobs, leases, plugins
from ops_app.models import Alert, JobRun, Lease

log = structlog.get_logger(__name__)

PREFIX = "tradingbot"
CONTENT_TYPE = CONTENT_TYPE_LATEST
Source = Callable[[], Iterable[Metric]]
_sources: dict[str, Source] = {}


def register(name: str, source: Source) -> None:
    """Add a function that yields metrics from a few queries; apps put theirs into `<app>/metrics_sources.py`."""
    _sources[name] = source


def gauge(name: str, help_text: str, value: float) -> Metric:
    """Return a gauge without labels, named `tradingbot_<name>`."""
    return GaugeMetricFamily(f"{PREFIX}_{name}", help_text, value=value)


def labelled(name: str, help_text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    """Return a gauge with one label."""
    family = GaugeMetricFamily(f"{PREFIX}_{name}", help_text, labels=[label])
    for text, value in values:
        family.add_metric([text], value)
    return family


class Rows(Collector):
    """Asks every source when it is scraped; one that fails is counted and does not hide the others."""

    def collect(self) -> Iterable[Metric]:
        failed = 0
        for name, source in _sources.items():
            try:
                found = list(source())
            except Exception:
                log.exception("metrics_source_failed", source=name)
                failed += 1
                continue
            yield from found
        yield gauge("metrics_sources_failed", "Sources of metrics that raised an error at this scrape.", failed)


def text() -> bytes:
    """Return all metrics in Prometheus' text format."""
    plugins.load("metrics_sources")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Rows())
    return generate_latest(registry)


def operations() -> Iterable[Metric]:
    """Yield what this app knows: processes, leases, alerts, jobs, the market's clock."""
    pulses = heartbeats.pulses()
    yield labelled(
        "process_up",
        "1: the process said in time that it lives.",
        "process",
        ((p.name, float(p.alive)) for p in pulses),
    )
    yield labelled(
        "process_silence_seconds",
        "Since the process last said that it lives.",
        "process",
        ((p.name, p.age.total_seconds()) for p in pulses),
    )
    held = Lease.objects.filter(leases.unexpired()).values_list("name", flat=True)
    yield labelled("lease_held", "1: the lease is held.", "lease", ((name, 1.0) for name in held))
    yield gauge("alerts_open", "Alerts that are not resolved.", Alert.objects.filter(resolved_at__isnull=True).count())
    names = [job.name for job in jobs.registered()]  # not what workers write for a shard: labels must not grow
    finished = JobRun.objects.filter(job__in=names, finished_at__isnull=False)
    last = finished.order_by().values("job").annotate(last=Max("pk"))
    runs = list(JobRun.objects.filter(pk__in=last.values("last")).values_list("job", "seconds", "error"))
    yield labelled("job_seconds", "Duration of the job's last run.", "job", ((job, s or 0.0) for job, s, _ in runs))
    yield labelled("job_failed", "1: the job's last run failed.", "job", ((job, float(bool(e))) for job, _, e in runs))
    yield gauge("market_time_seconds", "Market time in seconds since 1970.", clock.market_now_ms() / 1000)
    yield gauge("market_speed", "Seconds of market time per real second.", clock.speed())


register("operations", operations)
