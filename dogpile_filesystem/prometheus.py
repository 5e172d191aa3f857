"""
The statistics of regions, and of filesystems that cache sources, as metrics of Prometheus. Needs
``prometheus_client``: ``pip install dogpile_filesystem[prometheus]``.

Concurrency. All figures are totals over all processes that use a cache, read from its lock file at each scrape. So
every worker of a server gives the same answer, nothing has to be added up over workers, and the files of
prometheus_client's multi-process mode are not needed. A scrape may miss what other processes did in the last three
seconds.

Limits. Counters start again from zero when the directory of a cache is deleted; ``rate()`` expects that of a counter.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from dogpile.cache import CacheRegion
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dogpile_filesystem.backend import GenericFSBackend, RawFSBackend
from dogpile_filesystem.lockfile import Counts, SourceCounts, Stats, UnsentCounts

__all__ = ["RegionCollector"]

_PREFIX = "dogpile_filesystem_"

#: The fields of `Counts` that are numbers, and their help texts.
_COUNTERS = {
    "hits": "Reads that found a value.",
    "memory_hits": "Hits that were answered from the memory of a process.",
    "misses": "Reads that found no value.",
    "expired": "Misses for which there was an entry, but it was older than expiration_time.",
    "stores": "Values and files stored.",
    "stored_bytes": "Bytes on disk of the values and files stored.",
    "evictions": "Entries removed to make room.",
    "evicted_bytes": "Bytes on disk of the entries removed to make room.",
    "refused": "Values not stored: larger than cache_size, or no room could be made.",
    "damaged": "Damaged entries found.",
    "mutex_waits": "Waits of a thread for another creator.",
    "mutex_wait_seconds": "Time that threads waited for other creators.",
    "lock_timeouts": "Waits for another creator given up after lock_timeout.",
    "creations_saved": "Waits for another creator that ended in a hit.",
}

#: The fields of `SourceCounts` that are summed, and their help texts. Each metric's name begins with "source".
_SOURCE_COUNTERS = {
    "open_hits": "Files opened of which every block was in the cache.",
    "open_partials": "Files opened of which some blocks were in the cache.",
    "open_misses": "Files opened of which no block was in the cache.",
    "open_outdated": "Lookups by which the source had another version than the cache.",
    "block_hits": "Reads of a block that was in the cache.",
    "block_misses": "Reads of a block that had to be fetched from the source.",
    "block_waits": "Reads that waited for a block that another reader was just fetching.",
    "cache_bytes": "Bytes that readers got from the cache.",
    "source_bytes": "Bytes fetched from the source.",
    "shared_bytes": "Bytes fetched from the source for which another reader was waiting.",
    "requests": "Requests to the source.",
    "request_seconds": "Time that requests to the source took.",
    "fills_started": "Files that were to be cached whole, in the background.",
    "fills_finished": "Files of which every block was cached in the background.",
    "fills_given_up": "Files whose caching in the background was given up.",
    "stale_served": "Lookups answered by the last known version because the source failed.",
    "uploads": "Files written back that the source has taken, or removed.",
    "upload_bytes": "Bytes of the files written back that the source has taken.",
    "uploads_failed": "Tries to send a file to the source that failed.",
    "uploads_refused": "Failed tries for which the source said no.",
    "uploads_full": "Failed tries for which the source had no room.",
    "upload_conflicts": "Failed tries that would have overwritten what somebody else has changed.",
}

_Backend = GenericFSBackend | RawFSBackend


class _Store(Protocol):
    base_dir: str

    def stats(self) -> Stats: ...


class _WithStore(Protocol):
    @property
    def store(self) -> _Store: ...


class RegionCollector(Collector):
    """
    A collector of the statistics of regions, and of filesystems that cache the files of a source. Each metric has the
    label ``region``.

    ::

        REGISTRY.register(RegionCollector({"pages": pages, "reports": reports, "files": filesystem}))

    Regions may be configured later, and may have proxies. Regions and filesystems that share a directory share its
    statistics: they are exported once, with their names joined, as ``region="pages,reports"``.

    A region never makes a scrape fail. If its lock file cannot be used, if it is not configured yet, or if it was
    configured later with another backend, it has only ``dogpile_filesystem_up``, which is then 0.

    Also omitted are counters before anything has been counted, bounds that are not set, the size and the number of
    entries while a lost ledger is counted anew, since they are too low then, and the figures of sources where there
    are none.

    :param regions: by the names that become their labels: regions with a backend of this package; and filesystems, or
     other objects, with a store of this package as their attribute ``store``.
    :raises TypeError: a region is configured with another backend, or an object has no store.
    """

    def __init__(self, regions: Mapping[str, CacheRegion | _WithStore]) -> None:
        self._regions = dict(regions)
        for name, region in self._regions.items():
            _refuse_without_statistics(name, region)

    def describe(self) -> Iterable[Metric]:
        """The metrics without figures, so that registering the collector looks at no region."""
        return _Metrics().all()

    def collect(self) -> Iterable[Metric]:
        """The metrics, read now."""
        metrics = _Metrics()
        for label, stores in self._caches():
            metrics.add(label, _stats(stores))
        return metrics.found()

    def _caches(self) -> Iterator[tuple[str, list[_Store]]]:
        """Each directory once, with its label and the stores that use it; each region without a store by itself."""
        by_directory: dict[str, dict[str, _Store]] = {}
        for name, region in sorted(self._regions.items()):
            store = _store(region)
            if store is None:
                yield name, []
            else:
                by_directory.setdefault(os.path.realpath(store.base_dir), {})[name] = store
        for stores in by_directory.values():
            yield ",".join(stores), list(stores.values())


def _refuse_without_statistics(name: str, region: CacheRegion | _WithStore) -> None:
    """Raise TypeError for a region with another backend, or an object without a store."""
    if not isinstance(region, CacheRegion):
        if not hasattr(region, "store"):
            msg = f"{name!r} is a {type(region).__name__}, which has no store: pass a region, or a CachedFileSystem"
            raise TypeError(msg)
    elif region.is_configured and _store(region) is None:
        what = f"has the backend {type(region.actual_backend).__name__}, which keeps no statistics"
        msg = f"region {name!r} {what}: leave it out, or configure it with a backend of dogpile_filesystem"
        raise TypeError(msg)


def _store(region: CacheRegion | _WithStore) -> _Store | None:
    """The store of a region or of a filesystem; None: the region has none, or not yet."""
    if not isinstance(region, CacheRegion):
        return region.store
    backend = region.actual_backend if region.is_configured else None
    return backend.store if isinstance(backend, _Backend) else None


def _stats(stores: list[_Store]) -> Stats | None:
    """The statistics of a directory; None: they cannot be read."""
    stats = None
    for store in stores:  # Each call first adds the store's own counts, so the last result has all of them.
        stats = store.stats()
    return stats if stats is not None and stats.is_available else None


class _Metrics:
    """The metrics of one scrape."""

    def __init__(self) -> None:
        self._counters = {name: _counter(name, text) for name, text in _COUNTERS.items()}
        self._failures = _counter("failures", "Failures of the filesystem, by the name of the errno.", "cause")
        self._sources = {
            name: _counter(f"source_{name.removeprefix('source_')}", text) for name, text in _SOURCE_COUNTERS.items()
        }
        self._up = _gauge("up", "Whether the figures of the region could be read.")
        self._since = _gauge(
            "counting_start_time_seconds", "The time at which counting began, in seconds since the epoch."
        )
        self._entries = _gauge("entries", "Entries in the cache.")
        self._entries_limit = _gauge("entries_limit", "Entries that the cache may have. Absent if there is no limit.")
        self._size = _gauge("size_bytes", "Bytes on disk of the entries.")
        self._size_limit = _gauge(
            "size_limit_bytes", "Bytes that the entries may take on disk. Absent if there is no limit."
        )

        self._unsent = _gauge("unsent_files", "Files written back that a source is still to get, or to remove.")
        self._unsent_size = _gauge("unsent_bytes", "Bytes on disk of the files that a source is still to get.")
        self._unsent_age = _gauge("unsent_oldest_seconds", "Seconds since the oldest unsent file was written. 0: none.")

    def all(self) -> list[Metric]:
        return self._with([*self._sources.values(), *self._of_unsent()])

    def found(self) -> list[Metric]:
        """All, but those of sources only where there are some."""
        return self._with(metric for metric in [*self._sources.values(), *self._of_unsent()] if metric.samples)

    def _of_unsent(self) -> list[GaugeMetricFamily]:
        return [self._unsent, self._unsent_size, self._unsent_age]

    def _with(self, sources: Iterable[Metric]) -> list[Metric]:
        gauges = [self._up, self._since, self._entries, self._entries_limit, self._size, self._size_limit]
        return [*self._counters.values(), self._failures, *sources, *gauges]

    def add(self, label: str, stats: Stats | None) -> None:
        self._up.add_metric([label], float(stats is not None))
        if stats is None:
            return
        # Omitted, not 0, before anything has been counted: if only the totals were lost, 0 would look like a reset.
        if stats.since is not None:
            self._add_totals(label, stats.total)
        if stats.total.source.is_used or stats.unsent.files:
            self._add_unsent(label, stats.unsent)
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
        if total.source.is_used:
            self._add_source(label, total.source)

    def _add_unsent(self, label: str, unsent: UnsentCounts) -> None:
        age = 0.0 if unsent.since is None else max(0.0, time.time() - unsent.since)
        for gauge, value in zip(self._of_unsent(), (unsent.files, unsent.size, age), strict=True):
            gauge.add_metric([label], value)

    def _add_source(self, label: str, source: SourceCounts) -> None:
        for name, counter in self._sources.items():
            counter.add_metric([label], getattr(source, name))


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, text, labels=["region", *labels])


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, text, labels=["region"])
