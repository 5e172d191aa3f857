"""
gunicorn on the loopback: every worker class, with and without a preloaded application, and both backends at once.
"""

from __future__ import annotations

import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import Gunicorn

pytest.importorskip("gunicorn")
pytest.importorskip("gevent")

#: The value that a creator makes for a key. It is larger than any buffer on the way, and holds every byte.
BODY = bytes(range(256)) * 300

APPLICATION = """
    import os, tempfile, time, wsgiref.util
    from dogpile.cache import make_region
    from serving import creating

    here = os.path.dirname(__file__)
    values = make_region().configure("paylogic.filesystem", arguments={"base_dir": f"{here}/values"})
    files = make_region().configure(
        "paylogic.raw_filesystem", arguments={"base_dir": f"{here}/files", "file_movable": True}
    )
    # In the master, if the application is preloaded.
    values.set("set on import", b"set on import")
    assert values.get("set on import") == b"set on import"

    def make(kind, key):
        creating(here, kind, key)
        time.sleep(0.02)
        return f"{kind} {key} ".encode() + bytes(range(256)) * 300

    @values.cache_on_arguments()
    def value(key):
        return make("value", key)

    @files.cache_on_arguments()
    def file(key):
        made = tempfile.NamedTemporaryFile(dir=here, delete=False)
        made.write(make("file", key))
        made.seek(0)
        return made

    def application(environ, start_response):
        kind, key = environ["PATH_INFO"].strip("/").split("/")
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        if kind == "region":
            return [values.get(key) or b"missing"]
        if kind == "value":
            return [value(key)]
        wrapper = environ.get("wsgi.file_wrapper", wsgiref.util.FileWrapper)
        return wrapper(file(key))
"""


@pytest.fixture(params=["sync", "gthread", "gevent"])
def worker_options(request):
    return ["--worker-class", request.param] + (["--threads", "8"] if request.param == "gthread" else [])


@pytest.fixture(params=[False, True], ids=["plain", "preload"])
def server(request, worker_options, tmp_path):
    (tmp_path / "application.py").write_text(textwrap.dedent(APPLICATION))
    options = worker_options + ["--preload"] * request.param
    running = Gunicorn(tmp_path, [*options, "application:application"], workers=3)
    yield running
    running.quit()


def expected(path: str) -> bytes:
    return path.strip("/").replace("/", " ").encode() + b" " + BODY


def test_server(server):
    """
    Many clients get every value and file right, each created once by all workers together; killing the worker that
    creates one delays no client and loses nothing, and the server stops without a complaint.
    """
    paths = [f"/{kind}/{number}" for kind in ("value", "file") for number in range(12)]
    with ThreadPoolExecutor(24) as clients:
        assert list(clients.map(server.get, paths * 8)) == [expected(path) for path in paths * 8]
        created = ["/" + "/".join(line[:2]) for line in server.created()]
        assert sorted(created) == sorted(paths)
        assert server.get("/region/set%20on%20import") == b"set on import"

        for kind in ("value", "file"):
            path, count = f"/{kind}/wait", len(server.created())
            with server.holding():
                first = clients.submit(server.get, path)
                creator = int(server.until_created(count + 1)[-1][2])
                others = [clients.submit(server.get, path) for _ in range(8)]
                server.kill_worker(creator)
                assert int(server.until_created(count + 2)[-1][2]) != creator
            assert [client.result(30) for client in [first, *others]] == [expected(path)] * 9
            assert len(server.created()) == count + 2

        before = server.created()
        assert list(clients.map(server.get, paths)) == [expected(path) for path in paths]
        assert server.created() == before
    assert server.stop() == 0
    assert server.complaints() == []
