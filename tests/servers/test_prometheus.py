"""
The collector for prometheus_client in gunicorn, in both modes of prometheus_client.
"""

from __future__ import annotations

import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import Gunicorn, wait_for

pytest.importorskip("gunicorn")
pytest.importorskip("prometheus_client")

from scraping import samples

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
    Whether prometheus_client is in its multi-process mode.
    """
    return request.param


@pytest.fixture
def server(is_multiprocess, tmp_path):
    """
    A gunicorn with four workers.
    """
    (tmp_path / "application.py").write_text(textwrap.dedent(APPLICATION))
    (tmp_path / "multiprocess").mkdir()
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "multiprocess")} if is_multiprocess else {}
    running = Gunicorn(tmp_path, ["application:application"], workers=4, environment=environment)
    yield running
    running.quit()


def test_gunicorn(server, is_multiprocess):
    """Whichever worker answers, and however often, the totals of all workers are exported once and are the same."""
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
        ask_all_workers("/metrics")  # Each worker has added what it did.
        expositions = ask_all_workers("/metrics")
    first, *others = [samples(exposition, "pages") for exposition in expositions]
    assert first["hits_total"] + first["misses_total"] == requests
    assert first["stores_total"] == first["entries"] == len(pages)
    assert all(other == first for other in others)
    if is_multiprocess:
        assert {exposition.count(f"\nrequests_total {requests}.0\n") for exposition in expositions} == {1}
    assert server.stop() == 0
    assert server.complaints() == []
