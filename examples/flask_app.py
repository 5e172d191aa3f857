"""
A Flask application with five uses of the cache: a slow page, a page that is refreshed while readers get the old one, a
generated file to download, files from slow storage, and an administrator's page. README.md says how to start it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any, BinaryIO

import fsspec
from dogpile.cache import CacheRegion, make_region
from dogpile.cache.api import CacheMutex
from flask import Flask, Response, abort, redirect, render_template_string, request, send_file, url_for
from werkzeug.exceptions import RequestedRangeNotSatisfiable
from werkzeug.security import safe_join
from werkzeug.wsgi import FileWrapper

from dogpile_filesystem import FilesystemInvalidation
from dogpile_filesystem.remote import CachedFileSystem

application = Flask(__name__)
application.config.from_mapping(
    CACHE_DIR="~/.cache/flask_app",
    REPORTS_SIZE="1GiB",
    FILES_URL=os.path.dirname(os.path.abspath(__file__)),  # Stands for a slow mount, or for s3://bucket/directory.
    FILES_OPTIONS={},  # Of the store, such as its credentials. In the environment: JSON.
)
application.config.from_prefixed_env()  # FLASK_CACHE_DIR and the others
CACHE_DIR = os.path.abspath(os.path.expanduser(application.config["CACHE_DIR"]))
#: On the filesystem of the cache, so that files can be moved in by renaming them, but outside the region's directory.
SCRATCH_DIR = os.path.join(CACHE_DIR, "tmp")


def refresh_in_background(region: CacheRegion, key: str, creator: Callable[[], Any], mutex: CacheMutex) -> None:
    """Create a value in a thread. Until it is there, readers get the old one."""

    def refresh() -> None:
        try:
            region.set(key, creator())
        except Exception:
            application.logger.exception("cannot refresh %s", key)
        finally:
            mutex.release()  # Otherwise the value could not be refreshed again until this process ends.

    # A thread for each refresh: an executor that the master of a preloading server made on import would not work in
    # its workers.
    threading.Thread(target=refresh, daemon=True).start()


def configured(region: CacheRegion, backend: str, expiration_time: int, **arguments: object) -> CacheRegion:
    base_dir = os.path.join(CACHE_DIR, str(region.name))
    # Without the invalidator, `region.invalidate()` would affect only the worker that calls it.
    return region.configure(
        backend,
        expiration_time=expiration_time,
        arguments={"base_dir": base_dir, **arguments},
        region_invalidator=FilesystemInvalidation(base_dir),
    )


pages = configured(make_region("pages"), "paylogic.filesystem", 3600, cache_size="256MiB")
news = configured(
    make_region("news", async_creation_runner=refresh_in_background), "paylogic.filesystem", 60, cache_size="16MiB"
)
reports = configured(
    make_region("reports"),
    "paylogic.raw_filesystem",
    86400,
    cache_size=application.config["REPORTS_SIZE"],
    file_movable=True,
)
REGIONS = {str(region.name): region for region in (pages, news, reports)}
store, FILES_ROOT = fsspec.core.url_to_fs(application.config["FILES_URL"], **application.config["FILES_OPTIONS"])
files = CachedFileSystem(fs=store, base_dir=os.path.join(CACHE_DIR, "files"), cache_size="10GiB")


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


# The sleeps stand for whatever is slow in a real application.
def query_article(section: str, number: int) -> dict[str, str]:
    time.sleep(0.5)
    return {"title": f"Article {number} of <{section}>", "text": "Fish & chips.", "made": now()}


def query_headlines() -> dict[str, Any]:
    time.sleep(0.5)
    return {"lines": [f"Headline {number}" for number in range(1, 6)], "made": now()}


def query_sales(year: int) -> Iterator[str]:
    time.sleep(0.5)
    as_of = now()
    return (f"{year},{order:06},{order * 7919 % 100_000:05},{as_of}\n" for order in range(100_000))


@pages.cache_on_arguments()
def article(section: str, number: int) -> dict[str, str]:
    return query_article(section, number)


@news.cache_on_arguments()
def headlines() -> dict[str, Any]:
    return query_headlines()


@reports.cache_on_arguments()
def report(year: int) -> BinaryIO:
    os.makedirs(SCRATCH_DIR, mode=0o700, exist_ok=True)
    file = tempfile.NamedTemporaryFile(dir=SCRATCH_DIR, delete=False)  # noqa: SIM115 - the cache takes it over
    try:
        file.writelines(row.encode() for row in query_sales(year))
    except BaseException:
        file.close()
        os.unlink(file.name)
        raise
    file.seek(0)
    return file


PAGE = """<!doctype html>
<title>{{ title }}</title>
<h1>{{ title }}</h1>
{% for line in lines %}<p>{{ line }}</p>{% endfor %}
<p>{% if made %}Made at {{ made }}.{% endif %} Answered by worker {{ worker() }}.</p>
<p><a href="/article/books/1">A slow page</a> <a href="/news">A page refreshed while the old one is shown</a>
<a href="/report/2026">A file to download</a> <a href="/files/README.md">A file from slow storage</a>
<a href="/admin">Statistics</a></p>
"""
ADMIN = """<!doctype html>
<title>Statistics</title>
<table>
<tr><th>Region<th>Entries<th>Bytes<th>Counted in<th>Hits<th>Misses<th>Stores<th>Evictions
{% for name, all in stats.items() %}
{% for scope, counts in (("worker %d" % worker(), all.process), ("all processes", all.total)) %}
<tr><td>{{ name }}<td>{{ all.entries }}<td>{{ all.size }}<td>{{ scope }}
<td>{{ counts.hits }}<td>{{ counts.misses }}<td>{{ counts.stores }}<td>{{ counts.evictions }}
{% endfor %}
{% endfor %}
</table>
{% for name in stats %}
<form method="post" action="{{ url_for('invalidate', name=name) }}">{{ name }}:
<button>Invalidate</button> <button name="soft" value="1">Refresh</button></form>
{% endfor %}
{% for section in ("books", "films") %}
<form method="post" action="{{ url_for('remove', section=section) }}"><button>Remove all {{ section }}</button></form>
{% endfor %}
"""
application.jinja_env.globals["worker"] = os.getpid


@application.get("/")
def index() -> str:
    return render_template_string(PAGE, title="Cached", lines=[])


# The arguments are checked: dogpile joins them with spaces to make the key, so free text from an address could make the
# key of other arguments.
@application.get("/article/<any(books, films):section>/<int:number>")
def article_page(section: str, number: int) -> str:
    found = article(section, number)
    return render_template_string(PAGE, title=found["title"], lines=[found["text"]], made=found["made"])


@application.get("/news")
def news_page() -> str:
    found = headlines()
    return render_template_string(PAGE, title="News", lines=found["lines"], made=found["made"])


@application.get("/report/<int(min=2000, max=2029):year>")
def download(year: int) -> Response:
    file = report(year)
    if os.path.dirname(file.name) == SCRATCH_DIR:  # Created just now. If the cache kept it, this name is gone.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file.name)
    # The open file stays as it is, but its path disappears when the report is replaced or evicted. So the headers are
    # made from the open file too. There is no Last-Modified: it has whole seconds, in which there may be two versions,
    # and a client that resumes a broken download would join parts of both.
    status = os.fstat(file.fileno())
    response = send_file(
        file,
        mimetype="text/csv",
        as_attachment=True,
        download_name=f"report-{year}.csv",
        conditional=False,
        etag=f"{status.st_ino:x}-{status.st_mtime_ns:x}",
    )
    return conditional(response, status.st_size)


@application.get("/files/<path:name>")
def stored_file(name: str) -> Response:
    path = safe_join(FILES_ROOT, name)  # Nothing above the directory is served.
    if path is None or "\0" in path:
        abort(404)
    try:
        file = files.open(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        abort(404)
    # All that is said of the file, and all that is sent, is of the version that was opened. If the store replaces it
    # before all of it is sent or cached, the connection ends early, and the client can ask for the new version.
    etag = hashlib.blake2b(file.identity.encode(), digest_size=16).hexdigest()
    response = send_file(file, download_name=posixpath.basename(path), conditional=False, etag=etag)
    # The server's own wrapper cannot seek: to send a range, all that lies before it would be fetched.
    response.response = FileWrapper(file, 1 << 16)
    return conditional(response, file.size)


def conditional(response: Response, length: int) -> Response:
    """Answer Range, If-Range and If-None-Match."""
    # `send_file` does not ask an open file for its length. Without the length, ranges would not be answered.
    response.content_length = length
    try:
        response.make_conditional(request, accept_ranges=True, complete_length=length)
    except RequestedRangeNotSatisfiable:
        response.close()
        raise
    return response


# A real application has all of /admin behind a login, and a token against cross-site request forgery in each form.
@application.get("/admin")
def admin() -> str:
    stats = {name: region.backend.stats() for name, region in REGIONS.items()}
    return render_template_string(ADMIN, stats=stats)


@application.post("/admin/invalidate/<any(pages, news, reports):name>")
def invalidate(name: str) -> Any:
    # Hard: readers no longer get old values. Soft: they get the old value until there is a new one.
    REGIONS[name].invalidate(hard="soft" not in request.form)
    return redirect(url_for("admin"), 303)


@application.post("/admin/remove/<any(books, films):section>")
def remove(section: str) -> Any:
    # The prefix that the keys of all articles of the section share.
    prefix = pages.function_key_generator(None, article.original)(section, "")
    pages.backend.remove_matching(prefix=prefix)
    return redirect(url_for("admin"), 303)
