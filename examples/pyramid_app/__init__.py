"""
A Pyramid application with five uses of the cache, all configured in an INI file. ../README.md says how to start it.
"""

from __future__ import annotations

import os
from typing import Any

from pyramid.config import Configurator
from pyramid.router import Router

from pyramid_app.caches import cached_files, configure_caches


def main(_global_config: dict[str, str], **settings: Any) -> Router:
    """The application that ``use = call:pyramid_app:main`` in the INI file makes."""
    settings["scratch_dir"] = os.path.abspath(os.path.expanduser(settings["scratch_dir"]))
    configure_caches(settings)
    settings["files"] = cached_files(settings)
    config = Configurator(settings=settings)
    config.add_route("index", "/")
    # The arguments are checked: dogpile joins them with spaces to make the key, so free text from an address could make
    # the key of other arguments.
    config.add_route("article", r"/article/{section:books|films}/{number:\d+}")
    config.add_route("news", "/news")
    config.add_route("report", r"/report/{year:20[0-2]\d}")
    config.add_route("file", "/files/*name")
    config.add_route("admin", "/admin", request_method="GET")
    config.add_route("invalidate", "/admin/invalidate/{name:pages|news|reports}", request_method="POST")
    config.add_route("remove", "/admin/remove/{section:books|films}", request_method="POST")
    config.scan("pyramid_app.views")
    return config.make_wsgi_app()
