"""
The statistics of regions as metrics of Prometheus. Needs ``prometheus_client``: ``pip install
dogpile_filesystem[prometheus]``.

Concurrency. All figures are totals over all processes that use a cache, read from its lock file at each scrape. So
every worker of a server answers the same, nothing is added up over workers, and no files of prometheus_client's
multi-process mode are needed. What other processes did in the last three seconds may be missing.

Deletion. Counters start anew when the directory of a cache is deleted, which ``rate()`` expects of a counter.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from dogpile.cache import CacheRegion
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dogpile_filesystem.backend import GenericFSBackend, RawFSBackend
from dogpile_filesystem.lockfile import Counts, Stats

__all__ = ["RegionCollector"]

_PREFIX = "dogpile_filesystem_"

#: The fields of `Counts` that are numbers, and what they say.
_COUNTERS = {
    "hits": "Reads that found a value.",
    "misses": "Reads that found none.",
    "expired": "Misses for which there was an entry, but one older than expiration_time.",
    "stores": "Values and files kept.",
    "stored_bytes": "Bytes on disk of the values and files kept.",
    "evictions": "Entries removed to make room.",
    "evicted_bytes": "Bytes on disk of the entries removed to make room.",
    "refused": "Values not kept: larger than cache_size, or no room could be made.",
    "damaged": "Damaged entries met.",
    "mutex_waits": "Times that a thread waited for another creator.",
    "mutex_wait_seconds": "Time that threads waited for other creators.",
    "lock_timeouts": "Waits for another creator given up after lock_timeout.",
    "creations_saved": "Waits for another creator that ended in a hit.",
}

_Backend = GenericFSBackend | RawFSBackend


class RegionCollector(Collector):
    """
    A collector of the statistics of regions, labelled with the region.

    ::

        REGISTRY.register(RegionCollector({"pages": pages, "reports": reports}))

    Regions may be configured later, and may have proxies. Those that share a directory share its statistics, and are
    exported once, with their names joined: ``region="pages,reports"``.

    A scrape never fails for a region. One whose figures cannot be had is left out but for ``dogpile_filesystem_up``,
    which is 0: its lock file cannot be used, it is not configured yet, or was configured later with another backend.

    Left out are also counters before anything was counted, a bound that there is not, and size and number of entries
    while a lost ledger is counted anew, since they are too low.

    :param regions: regions with a backend of this package, by the names that become their labels.
    :raises TypeError: a region is configured with another backend.
    """

    def __init__(self, regions: Mapping[str, CacheRegion]) -> None:
        self._regions = dict(regions)
        for name, region in self._regions.items():
            if region.is_configured and _backend(region) is None:
                what = f"has the backend {type(region.actual_backend).__name__}, which keeps no statistics"
                msg = f"region {name!r} {what}: leave it out, or configure it with a backend of dogpile_filesystem"
                raise TypeError(msg)

    def describe(self) -> Iterable[Metric]:
        """The metrics, without figures: no region is looked at when the collector is registered."""
        return _Metrics().all()

    def collect(self) -> Iterable[Metric]:
        """The metrics, read now."""
        metrics = _Metrics()
        for label, backends in self._caches():
            metrics.add(label, _stats(backends))
        return metrics.all()

    def _caches(self) -> Iterator[tuple[str, list[_Backend]]]:
        """Each directory once, with its label and the backends that use it; a region without backend by itself."""
        by_directory: dict[str, dict[str, _Backend]] = {}
        for name, region in sorted(self._regions.items()):
            backend = _backend(region)
            if backend is None:
                yield name, []
            else:
                by_directory.setdefault(os.path.realpath(backend.arguments.base_dir), {})[name] = backend
        for backends in by_directory.values():
            yield ",".join(backends), list(backends.values())


def _backend(region: CacheRegion) -> _Backend | None:
    backend = region.actual_backend if region.is_configured else None
    return backend if isinstance(backend, _Backend) else None


def _stats(backends: list[_Backend]) -> Stats | None:
    """The statistics of a directory; None: they cannot be had."""
    stats = None
    for backend in backends:  # Each of them first adds what it did itself, so that the last one says everything.
        stats = backend.stats()
    return stats if stats is not None and stats.is_available else None


class _Metrics:
    """The metrics of one scrape."""

    def __init__(self) -> None:
        self._counters = {name: _counter(name, text) for name, text in _COUNTERS.items()}
        self._failures = _counter("failures", "Trouble with the filesystem, by the name of the errno.", "cause")
        self._up = _gauge("up", "Whether the figures of the region could be read.")
        self._since = _gauge("counting_start_time_seconds", "Since when is counted, in seconds since the epoch.")
        self._entries = _gauge("entries", "Entries in the cache.")
        self._entries_limit = _gauge("entries_limit", "Entries that the cache may have. Absent: any number.")
        self._size = _gauge("size_bytes", "Bytes on disk of the entries.")
        self._size_limit = _gauge("size_limit_bytes", "Bytes that the entries may take on disk. Absent: any number.")

    def all(self) -> list[Metric]:
        gauges = [self._up, self._since, self._entries, self._entries_limit, self._size, self._size_limit]
        return [*self._counters.values(), self._failures, *gauges]

    def add(self, label: str, stats: Stats | None) -> None:
        self._up.add_metric([label], float(stats is not None))
        if stats is None:
            return
        # Not 0 before anything was counted: that would look like a reset if the totals were only damaged.
        if stats.since is not None:
            self._add_totals(label, stats.total)
        gauges = [
            (self._since, stats.since),
            (self._entries, stats.entries if stats.is_counted else None),
            (self._entries_limit, stats.max_entries),
            (self._size, stats.size if stats.is_counted else None),
            (self._size_limit, stats.cache_size),
        ]
        for gauge, value in gauges:
            if value is not None:
                gauge.add_metric([label], value)

    def _add_totals(self, label: str, total: Counts) -> None:
        for name, counter in self._counters.items():
            counter.add_metric([label], getattr(total, name))
        for cause, count in total.failures.items():
            self._failures.add_metric([label, cause], count)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, text, labels=["region", *labels])


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, text, labels=["region"])
