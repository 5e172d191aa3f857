"""
The collector for prometheus_client: scrapes of one process, of several, and of gunicorn; and the dashboard.
"""

from __future__ import annotations

import json
import re
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dogpile.cache import make_region
from dogpile.cache.proxy import ProxyBackend
from serving import Gunicorn, wait_for

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as strict
from prometheus_client.parser import text_string_to_metric_families as parse

from dogpile_filesystem.prometheus import RegionCollector

DASHBOARD = Path(__file__).parent.parent.parent / "examples" / "grafana-dashboard.json"


def samples(exposition: str, region: str) -> dict[str, float]:
    """Returns the samples of one region by the rest of their names, and fails if a name occurs twice."""
    found: dict[str, float] = {}
    for family in parse(exposition):
        for sample in family.samples:
            if sample.labels.get("region") == region:
                name = sample.name.removeprefix("dogpile_filesystem_") + sample.labels.get("cause", "")
                assert name not in found
                found[name] = sample.value
    return found


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
    Returns what a server with some regions answers.
    """

    def scrape(**regions):
        registry = CollectorRegistry()
        registry.register(RegionCollector(regions))
        return generate_latest(registry).decode()

    return scrape


def test_figures(make, scrape):
    """A scrape reports the operations on a region and its contents."""
    region = make(cache_size="40KiB", max_entries=10)
    for key in ("a", "b", "a", "a"):
        region.get_or_create(key, lambda: b"x" * 5000)
    region.set("large", b"x" * 50_000)
    found = samples(scrape(pages=region), "pages")
    assert found.pop("counting_start_time_seconds") == pytest.approx(time.time(), abs=60)
    assert found == {
        # The test makes a and b, each in two blocks of 4096, and then reads a twice.
        "hits_total": 2,
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
    """Filesystem failures are labelled with their cause."""
    region = make()
    region.set("a", 1)
    (tmp_path / "cache" / "values").rename(tmp_path / "values")
    (tmp_path / "cache" / "values").write_bytes(b"in the place of a directory")
    region.get("a")
    found = samples(scrape(pages=region), "pages")
    assert {name for name in found if name.startswith("failures")} == {"failures_totalENOTDIR"}
    assert found["failures_totalENOTDIR"] >= 1


def test_unbounded(make, scrape):
    """A bound that is not set is left out."""
    region = make(cache_size=None)
    region.set("a", 1)
    found = samples(scrape(pages=region), "pages")
    assert found["entries"] == 1
    assert not {"size_limit_bytes", "entries_limit"} & found.keys()


def test_lost_ledger(make, scrape, tmp_path):
    """Figures that are too low after a lost ledger are left out until they are right again."""
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
    """Regions on one directory are exported once, under all their names, with the counts of each."""
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
    """A region may be configured after its collector is registered, and only this region is down until then."""
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
    """A backend without statistics is refused with advice, and a region that gets one later is down alone."""
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
    """A region whose lock file is unusable is reported down and logged, and other regions are unaffected."""
    broken, whole = make("broken"), make("whole")
    (tmp_path / "broken" / "lock").write_bytes(b"not of this cache")
    exposition = scrape(broken=broken, whole=whole)
    assert samples(exposition, "broken") == {"up": 0}
    assert samples(exposition, "whole")["up"] == 1
    assert "cannot read the statistics" in caplog.text


def test_registration(make, tmp_path):
    """
    Registering reads no region, and a second collector in one registry is refused because its figures would clash.
    """
    registry = CollectorRegistry()
    registry.register(RegionCollector({"pages": make(), "later": make_region()}))
    assert not (tmp_path / "cache" / "lock").exists()
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(RegionCollector({"reports": make()}))
    assert registry.get_sample_value("dogpile_filesystem_up", {"region": "pages"}) == 1


def test_conventions(make):
    """The exposition parses strictly, counters end in _total, and sizes and times are in base units."""
    region, registry = make(), CollectorRegistry()
    region.set("a", 1)
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
    """Each of several processes answers with the sums over all of them."""
    processes = [spawn(WORKER, base_dir, number) for number in range(3)]

    def answer(process):
        return "".join(iter(process.stdout.readline, "# EOF\n"))

    for process in processes:
        answer(process)
    for process in processes:  # All processes have added their counts by now.
        process.stdin.write("\n")
        process.stdin.flush()
    first, *others = [samples(answer(process), "pages") for process in processes]
    assert (first["stores_total"], first["hits_total"], first["misses_total"], first["entries"]) == (15, 15, 3, 15)
    assert others == [first, first]


APPLICATION = """
    import os
    from dogpile.cache import make_region
    from dogpile_filesystem.prometheus import RegionCollector
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, make_wsgi_app, multiprocess

    here = os.path.dirname(__file__)
    pages = make_region().configure("paylogic.filesystem", arguments={"base_dir": f"{here}/pages"})
    collector = RegionCollector({"pages": pages})
    requests = Counter("requests", "Requests.")
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        REGISTRY.register(collector)

    @pages.cache_on_arguments()
    def page(path):
        return path

    def metrics(environ, start_response):
        registry = REGISTRY
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
            registry.register(collector)
        return make_wsgi_app(registry)(environ, start_response)

    def application(environ, start_response):
        worker = [("Worker", str(os.getpid()))]
        if environ["PATH_INFO"] == "/metrics":
            return metrics(environ, lambda status, headers: start_response(status, headers + worker))
        requests.inc()
        start_response("200 OK", worker)
        return [page(environ["PATH_INFO"]).encode()]
"""


@pytest.fixture(params=[False, True], ids=["plain", "multiprocess"])
def is_multiprocess(request):
    """
    Returns whether prometheus_client is in its multi-process mode.
    """
    return request.param


@pytest.fixture
def server(is_multiprocess, tmp_path):
    """
    A gunicorn with four workers.
    """
    pytest.importorskip("gunicorn")
    (tmp_path / "application.py").write_text(textwrap.dedent(APPLICATION))
    (tmp_path / "multiprocess").mkdir()
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "multiprocess")} if is_multiprocess else {}
    running = Gunicorn(tmp_path, ["application:application"], workers=4, environment=environment)
    yield running
    running.quit()


@pytest.mark.servers
def test_gunicorn(server, is_multiprocess):
    """Every worker exports the totals of all workers once, and the totals are the same whichever worker answers."""
    with ThreadPoolExecutor(8) as clients:

        def ask_all_workers(path):
            answers = []

            def ask_more():
                answers.extend(clients.map(server.request, [path] * 24))
                return {int(answer.headers["Worker"]) for answer in answers} == server.workers()

            wait_for(ask_more)
            return [answer.body.decode() for answer in answers]

        pages = [f"/{number}" for number in range(20)]
        paths = [path for path in pages for _ in range(10)]
        requests = len(paths) + len(ask_all_workers("/0"))
        assert list(clients.map(server.get, paths)) == [path.encode() for path in paths]
        ask_all_workers("/metrics")  # Each worker has added its counts.
        expositions = ask_all_workers("/metrics")
    first, *others = [samples(exposition, "pages") for exposition in expositions]
    assert first["hits_total"] + first["misses_total"] == requests
    assert first["stores_total"] == first["entries"] == len(pages)
    assert all(other == first for other in others)
    if is_multiprocess:
        assert {exposition.count(f"\nrequests_total {requests}.0\n") for exposition in expositions} == {1}
    assert server.stop() == 0
    assert server.complaints() == []


def test_dashboard(make, scrape):
    """The dashboard shows every metric that is exported, and no other."""
    region = make(max_entries=10)
    region.set("a", 1)
    exported = {sample.name for family in parse(scrape(pages=region)) for sample in family.samples}
    exported.add("dogpile_filesystem_failures_total")  # It has no samples, since nothing failed.
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert {name for expression in expressions for name in re.findall(r"dogpile_\w+", expression)} == exported
    selected = 'dogpile_\\w+{region=~"\\$region", instance=~"\\$instance"}'
    assert all(re.sub(selected, "", expression).count("dogpile_") == 0 for expression in expressions)


def test_dashboard_is_whole():
    """The dashboard's panels have unique numbers and do not overlap; data source, instance and region can be chosen."""
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
