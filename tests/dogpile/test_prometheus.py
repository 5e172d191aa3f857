"""
The collector for prometheus_client: what a scrape says, in one process and in several; and the dashboard.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from dogpile.cache import make_region
from dogpile.cache.proxy import ProxyBackend
from scraping import samples

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as strict
from prometheus_client.parser import text_string_to_metric_families as parse

from dogpile_filesystem.lockfile.counts import SOURCE_COUNTERS
from dogpile_filesystem.lockfile.format import head
from dogpile_filesystem.prometheus import RegionCollector
from dogpile_filesystem.store.store import Store

DASHBOARD = Path(__file__).parent.parent.parent / "examples" / "grafana-dashboard.json"


@pytest.fixture
def make(tmp_path):
    """
    Makes configured regions.
    """

    def make(name="cache", **arguments):
        arguments["base_dir"] = str(tmp_path / name)
        return make_region().configure("paylogic.filesystem", arguments=arguments)

    return make


@pytest.fixture
def scrape():
    """
    The answer of a server with some regions.
    """

    def scrape(**regions):
        registry = CollectorRegistry()
        registry.register(RegionCollector(regions))
        return generate_latest(registry).decode()

    return scrape


def test_figures(make, scrape):
    """A scrape reports what was done with a region, and what is in it."""
    region = make(cache_size="40KiB", max_entries=10)
    for key in ("a", "b", "a", "a"):
        region.get_or_create(key, lambda: b"x" * 5000)
    region.set("large", b"x" * 50_000)
    found = samples(scrape(pages=region), "pages")
    assert found.pop("counting_start_time_seconds") == pytest.approx(time.time(), abs=3600)
    assert found == {
        # a and b are stored, each in two blocks of 4096; then a is read twice.
        "hits_total": 2,
        "memory_hits_total": 0,
        "misses_total": 2,
        "expired_total": 0,
        "stores_total": 2,
        "stored_bytes_total": 4 * 4096,
        "evictions_total": 0,
        "evicted_bytes_total": 0,
        "refused_total": 1,
        "damaged_total": 0,
        "mutex_waits_total": 0,
        "mutex_wait_seconds_total": 0,
        "lock_timeouts_total": 0,
        "creations_saved_total": 0,
        "up": 1,
        "entries": 2,
        "entries_limit": 10,
        "size_bytes": 4 * 4096,
        "size_limit_bytes": 40 << 10,
    }


def test_failures(make, scrape, tmp_path):
    """A failure of the filesystem is labelled with its cause."""
    region = make()
    region.set("a", 1)
    (tmp_path / "cache" / "values").rename(tmp_path / "values")
    (tmp_path / "cache" / "values").write_bytes(b"in the place of a directory")
    region.get("a")
    found = samples(scrape(pages=region), "pages")
    assert {name for name in found if name.startswith("failures")} == {"failures_totalENOTDIR"}
    assert found["failures_totalENOTDIR"] >= 1


SOURCE = {
    "source_open_hits_total": 1,
    "source_open_partials_total": 2,
    "source_open_misses_total": 3,
    "source_open_outdated_total": 4,
    "source_block_hits_total": 5,
    "source_block_misses_total": 6,
    "source_block_waits_total": 7,
    "source_cache_bytes_total": 8,
    "source_bytes_total": 9,
    "source_shared_bytes_total": 10,
    "source_requests_total": 11,
    "source_request_seconds_total": 12,
    "source_fills_started_total": 13,
    "source_fills_finished_total": 14,
    "source_fills_given_up_total": 15,
    "source_stale_served_total": 16,
    "source_uploads_total": 17,
    "source_upload_bytes_total": 18,
    "source_uploads_failed_total": 19,
    "source_uploads_refused_total": 20,
    "source_uploads_full_total": 21,
    "source_upload_conflicts_total": 22,
}


def count_source(store):
    """Counts as many events of sources as `SOURCE` says."""
    for number, name in enumerate(SOURCE_COUNTERS, 1):
        setattr(store.source_counter, name, number * 10**9 if name == "request_ns" else number)


def test_sources(make, scrape):
    """A scrape has the counters of sources where there are some, and not even their names where there are none."""
    pages, files = make("pages"), make("files")
    pages.set("a", 1)
    files.set("a", 1)
    assert "source" not in scrape(pages=pages, files=files)
    count_source(files.backend.store)
    exposition = scrape(pages=pages, files=files)
    found = samples(exposition, "files")
    assert {name: value for name, value in found.items() if "source" in name} == SOURCE
    assert found["stores_total"] == 1
    assert not [name for name in samples(exposition, "pages") if "source" in name]


def test_filesystem(make, scrape, tmp_path):
    """An object with a store is exported like a region, and together with the regions on its directory."""

    class Filesystem:
        def __init__(self, base_dir):
            self.store = Store(str(base_dir))

    shared, own = Filesystem(tmp_path / "cache"), Filesystem(tmp_path / "own")
    region = make()
    region.set("a", 1)
    count_source(shared.store)
    assert own.store.put(b"k", bytes(5000))
    own.store.source_counter.requests += 1
    exposition = scrape(files=shared, pages=region, own=own)
    found = samples(exposition, "files,pages")
    assert (found["stores_total"], found["source_requests_total"]) == (1, 11)
    found = samples(exposition, "own")
    assert (found["stores_total"], found["size_bytes"], found["source_requests_total"]) == (1, 8192, 1)
    with pytest.raises(TypeError, match="'files' is a PosixPath, which has no store: pass a region, or a CachedFile"):
        RegionCollector({"files": tmp_path})


def test_unbounded(make, scrape):
    """A bound that is not set is omitted."""
    region = make(cache_size=None)
    region.set("a", 1)
    found = samples(scrape(pages=region), "pages")
    assert found["entries"] == 1
    assert not {"size_limit_bytes", "entries_limit"} & found.keys()


def test_lost_ledger(make, scrape, tmp_path):
    """After the ledger was lost, figures that would be too low are omitted until they are right."""
    region = make()
    region.set("a", 1)
    before = samples(scrape(pages=region), "pages")
    assert before["stores_total"] == before["entries"] == 1
    (tmp_path / "cache" / "lock").unlink()
    found = samples(scrape(pages=region), "pages")
    assert found == {"up": 1, "size_limit_bytes": 1 << 30}
    region.set("b", 1)
    found = samples(scrape(pages=region), "pages")
    assert (found["stores_total"], found["entries"], found["size_bytes"]) == (1, 2, 2 * 4096)
    assert found["counting_start_time_seconds"] > before["counting_start_time_seconds"]


def test_shared_directory(make, scrape, tmp_path):
    """Regions on one directory are exported once, under all their names, with the sums of what they did."""
    (tmp_path / "link").symlink_to("cache")
    values, linked, other = make(), make("link"), make("other")
    files = make_region().configure("paylogic.raw_filesystem", arguments={"base_dir": str(tmp_path / "cache")})
    values.set("a", 1)
    linked.get("a")
    files.get("a")
    other.set("a", 1)
    exposition = scrape(values=values, other=other, linked=linked, files=files)
    found = samples(exposition, "files,linked,values")
    assert (found["stores_total"], found["hits_total"], found["misses_total"]) == (1, 1, 1)
    assert samples(exposition, "other")["stores_total"] == 1
    labels = {sample.labels["region"] for family in parse(exposition) for sample in family.samples}
    assert labels == {"files,linked,values", "other"}


def test_proxies(make, scrape):
    """A region's proxies do not hide its statistics."""

    class Proxy(ProxyBackend):
        pass

    region = make()
    region.wrap(Proxy)
    region.set("a", 1)
    assert samples(scrape(pages=region), "pages")["stores_total"] == 1


def test_configured_later(make, tmp_path):
    """A region may be configured after its collector is registered; until then it is down, and the others are up."""
    later, registry = make_region(), CollectorRegistry()
    registry.register(RegionCollector({"later": later, "now": make("now")}))
    exposition = generate_latest(registry).decode()
    assert samples(exposition, "later") == {"up": 0}
    assert samples(exposition, "now")["up"] == 1
    later.configure("paylogic.filesystem", arguments={"base_dir": str(tmp_path / "later")})
    later.set("a", 1)
    found = samples(generate_latest(registry).decode(), "later")
    assert (found["up"], found["stores_total"]) == (1, 1)


def test_other_backends(make, scrape):
    """A backend without statistics is refused with advice; if it is configured later, only its region is down."""
    other = make_region()
    registry = CollectorRegistry()
    registry.register(RegionCollector({"other": other, "pages": make()}))
    other.configure("dogpile.cache.memory")
    with pytest.raises(TypeError, match="'other' has the backend MemoryBackend, which keeps no statistics: leave it"):
        RegionCollector({"other": other})
    exposition = generate_latest(registry).decode()
    assert samples(exposition, "other") == {"up": 0}
    assert samples(exposition, "pages")["up"] == 1


def test_unreadable(make, scrape, tmp_path, caplog):
    """A region whose lock file cannot be used is down and in the log; the others are up."""
    broken, whole = make("broken"), make("whole")
    (tmp_path / "broken" / "lock").write_bytes(head(3))
    exposition = scrape(broken=broken, whole=whole)
    assert samples(exposition, "broken") == {"up": 0}
    assert samples(exposition, "whole")["up"] == 1
    assert "cannot read the statistics" in caplog.text


def test_registration(make, tmp_path):
    """Registering looks at no region; a second collector in one registry is refused, since the figures would clash."""
    registry = CollectorRegistry()
    registry.register(RegionCollector({"pages": make(), "later": make_region()}))
    assert not (tmp_path / "cache" / "lock").exists()
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(RegionCollector({"reports": make()}))
    assert registry.get_sample_value("dogpile_filesystem_up", {"region": "pages"}) == 1


def test_conventions(make):
    """A strict parser accepts the exposition; counters end in _total, sizes and times in their base unit."""
    region, registry = make(), CollectorRegistry()
    region.set("a", 1)
    count_source(region.backend.store)
    registry.register(RegionCollector({'"quoted"\n\\': region}))
    families = list(strict.text_string_to_metric_families(openmetrics.generate_latest(registry).decode()))
    assert {family.type for family in families} == {"counter", "gauge"}
    for family in families:
        assert family.documentation.endswith(".")
        assert re.fullmatch(r"dogpile_filesystem_[a-z_]*[a-z]", family.name)
        assert not family.name.endswith("_total")
        assert "size" not in family.name.split("_") or family.name.endswith("_bytes")
        assert not {"time", "wait"} & set(family.name.split("_")) or family.name.endswith("_seconds")
        assert all(sample.labels["region"] == '"quoted"\n\\' for sample in family.samples)


WORKER = """
    import sys
    from dogpile.cache import make_region
    from dogpile_filesystem.prometheus import RegionCollector
    from prometheus_client import CollectorRegistry, generate_latest

    base_dir, number = sys.argv[1:]
    region = make_region().configure("paylogic.filesystem", arguments={"base_dir": base_dir})
    registry = CollectorRegistry()
    registry.register(RegionCollector({"pages": region}))
    for key in range(5):
        region.set(f"{number} {key}", key)
        assert region.get(f"{number} {key}") == key
    region.get(f"{number} none")
    for _ in range(2):
        print(generate_latest(registry).decode(), "# EOF", sep="", flush=True)
        sys.stdin.readline()
"""


def test_processes(spawn, base_dir):
    """Every process answers with the sums over all processes."""
    processes = [spawn(WORKER, base_dir, number) for number in range(3)]

    def answer(process):
        lines = []
        while (line := process.stdout.readline()) != "# EOF\n":
            assert line, "the process ended"
            lines.append(line)
        return "".join(lines)

    for process in processes:
        answer(process)
    for process in processes:  # By now, each process has added its counts.
        process.stdin.write("\n")
        process.stdin.flush()
    first, *others = [samples(answer(process), "pages") for process in processes]
    assert (first["stores_total"], first["hits_total"], first["misses_total"], first["entries"]) == (15, 15, 3, 15)
    assert others == [first, first]


def test_dashboard(make, scrape):
    """The dashboard shows exactly the metrics that are exported."""
    region = make(max_entries=10)
    region.set("a", 1)
    count_source(region.backend.store)
    exported = {sample.name for family in parse(scrape(pages=region)) for sample in family.samples}
    exported.add("dogpile_filesystem_failures_total")  # It has no figure, since nothing failed.
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert {name for expression in expressions for name in re.findall(r"dogpile_\w+", expression)} == exported
    selected = 'dogpile_\\w+{region=~"\\$region", instance=~"\\$instance"}'
    assert all(re.sub(selected, "", expression).count("dogpile_") == 0 for expression in expressions)


def test_dashboard_is_whole():
    """Panels have unique ids and do not overlap; the data source, the instance and the region can be chosen."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for position in (panel["gridPos"] for panel in panels)
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23
    variables = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource": "datasource", "instance": "query", "region": "query"}
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}


def test_unsent(make, scrape):
    """What a source is still to get is exported with its age, where there are sources or unsent files."""
    region = make()
    region.set("a", 1)
    assert "unsent" not in scrape(pages=region)
    region.backend.store.unsent.accept(b"key", b"record")
    found = samples(scrape(pages=region), "pages")
    assert (found["unsent_files"], found["unsent_bytes"]) == (1, 4096)
    assert 0 <= found["unsent_oldest_seconds"] < 3600
    [file] = region.backend.store.unsent.all()
    assert region.backend.store.unsent.remove(file.key, file.token)
    assert "unsent" not in scrape(pages=region)
    region.backend.store.source_counter.uploads += 1
    found = samples(scrape(pages=region), "pages")
    assert (found["unsent_files"], found["unsent_oldest_seconds"], found["source_uploads_total"]) == (0, 0, 1)
