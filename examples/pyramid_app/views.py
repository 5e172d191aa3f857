"""
The pages.
"""

from __future__ import annotations

import contextlib
import hashlib
import mimetypes
import os
from collections.abc import Iterable
from html import escape
from typing import BinaryIO

from pyramid.httpexceptions import HTTPNotFound, HTTPSeeOther
from pyramid.request import Request
from pyramid.response import FileIter, Response
from pyramid.view import view_config

from pyramid_app.caches import REGIONS, pages
from pyramid_app.slow import article, headlines, report

BLOCK_SIZE = 1 << 18
LINKS = """<p><a href="/article/books/1">A slow page</a> <a href="/news">A page refreshed while the old one is shown</a>
<a href="/report/2026">A file to download</a> <a href="/files/views.py">A file from slow storage</a>
<a href="/admin">Statistics</a></p>
"""


def page(title: str, lines: Iterable[str] = (), made: str = "") -> Response:
    text = "".join(f"<p>{escape(line)}</p>\n" for line in lines)
    made = f"Made at {escape(made)}." if made else ""
    return Response(
        f"<!doctype html>\n<title>{escape(title)}</title>\n<h1>{escape(title)}</h1>\n{text}"
        f"<p>{made} Answered by worker {os.getpid()}.</p>\n{LINKS}"
    )


@view_config(route_name="index")
def index(_request: Request) -> Response:
    return page("Cached")


@view_config(route_name="article")
def article_page(request: Request) -> Response:
    found = article(request.matchdict["section"], int(request.matchdict["number"]))
    return page(found["title"], [found["text"]], found["made"])


@view_config(route_name="news")
def news_page(_request: Request) -> Response:
    found = headlines()
    return page("News", found["lines"], found["made"])


@view_config(route_name="report")
def download(request: Request) -> Response:
    year, scratch_dir = request.matchdict["year"], request.registry.settings["scratch_dir"]
    file = report(int(year), scratch_dir)
    if os.path.dirname(file.name) == scratch_dir:  # Created just now. If the cache kept it, this name is gone.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file.name)
    # Not a FileResponse, which opens a path: the path disappears when the report is replaced or evicted. That can
    # happen before FileResponse opens it, or between its look at the length and at the bytes. The open file stays as
    # it is, and the headers are made from it too.
    status = os.fstat(file.fileno())
    response = Response(
        conditional_response=True,  # Answers Range, If-Range and If-None-Match.
        content_type="text/csv",
        content_disposition=f'attachment; filename="report-{year}.csv"',
        accept_ranges="bytes",
        # No Last-Modified: it has whole seconds, in which there may be two versions, and a client that resumes a broken
        # download would join parts of both.
        etag=f"{status.st_ino:x}-{status.st_mtime_ns:x}",
        cache_control="no-cache",
    )
    response.app_iter = request.environ.get("wsgi.file_wrapper", FileIter)(file, BLOCK_SIZE)
    response.content_length = status.st_size  # After `app_iter`, whose setter clears it.
    return response


class Part(FileIter):
    """
    The bytes of a file, or of the part that a request asks for. Response would read all that lies before the part.
    """

    def __init__(self, file: BinaryIO, length: int) -> None:
        super().__init__(file, BLOCK_SIZE)
        self.left = length

    def app_iter_range(self, start: int, stop: int) -> Part:
        """What Response calls to answer Range."""
        self.file.seek(start)
        self.left = stop - start
        return self

    def __next__(self) -> bytes:
        data: bytes = self.file.read(min(self.block_size, self.left))
        if not data:
            raise StopIteration
        self.left -= len(data)
        return data


@view_config(route_name="file")
def stored_file(request: Request) -> Response:
    files, root = request.registry.settings["files"]
    names = request.matchdict["name"]
    # Nothing above the directory is served.
    if not names or any(name in ("", ".", "..") or "\0" in name for name in names):
        raise HTTPNotFound
    try:
        file = files.open("/".join([root, *names]))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise HTTPNotFound from error
    content_type, content_encoding = mimetypes.guess_type(names[-1])
    # All that is said of the file, and all that is sent, is of the version that was opened. If the store replaces it
    # before all of it is sent or cached, the connection ends early, and the client can ask for the new version.
    response = Response(
        conditional_response=True,
        content_type=content_type or "application/octet-stream",
        content_encoding=content_encoding,
        accept_ranges="bytes",
        etag=hashlib.blake2b(file.identity.encode(), digest_size=16).hexdigest(),
        cache_control="no-cache",
    )
    response.app_iter = Part(file, file.size)
    response.content_length = file.size
    return response


# A real application has all of /admin behind a login, and `config.set_default_csrf_options(require_csrf=True)` with a
# token in each form.
@view_config(route_name="admin")
def admin(request: Request) -> Response:
    rows = []
    for name, region in REGIONS.items():
        stats = region.backend.stats()
        for scope, counts in ((f"worker {os.getpid()}", stats.process), ("all processes", stats.total)):
            rows.append(
                f"<tr><td>{name}<td>{stats.entries}<td>{stats.size}<td>{scope}"
                f"<td>{counts.hits}<td>{counts.misses}<td>{counts.stores}<td>{counts.evictions}\n"
            )
    forms = [
        f'<form method="post" action="{request.route_path("invalidate", name=name)}">{name}:\n'
        '<button>Invalidate</button> <button name="soft" value="1">Refresh</button></form>\n'
        for name in REGIONS
    ] + [
        f'<form method="post" action="{request.route_path("remove", section=section)}">'
        f"<button>Remove all {section}</button></form>\n"
        for section in ("books", "films")
    ]
    return Response(
        "<!doctype html>\n<title>Statistics</title>\n<table>\n"
        "<tr><th>Region<th>Entries<th>Bytes<th>Counted in<th>Hits<th>Misses<th>Stores<th>Evictions\n"
        f"{''.join(rows)}</table>\n{''.join(forms)}"
    )


@view_config(route_name="invalidate")
def invalidate(request: Request) -> HTTPSeeOther:
    # Hard: readers no longer get old values. Soft: they get the old value until there is a new one.
    REGIONS[request.matchdict["name"]].invalidate(hard="soft" not in request.POST)
    return HTTPSeeOther(request.route_path("admin"))


@view_config(route_name="remove")
def remove(request: Request) -> HTTPSeeOther:
    # The prefix that the keys of all articles of the section share.
    prefix = pages.function_key_generator(None, article.original)(request.matchdict["section"], "")
    pages.backend.remove_matching(prefix=prefix)
    return HTTPSeeOther(request.route_path("admin"))
