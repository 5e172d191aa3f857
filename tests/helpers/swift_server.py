"""
Helper: a real OpenStack Swift on the loopback, four servers and memcached, with the authentication of a Swift that
stands alone; and in front of it as much of Keystone as clients need to log in.

A test that needs it is skipped if its programs are not installed. All processes belong to the test, and end with it.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE
from serving import wait_for

USER, PASSWORD, PROJECT = "tester", "testing", "test"
#: That of Debian, which has Swift; the tests may be run by another.
PYTHON = "/usr/bin/python3"
_PROGRAMS = str(Path(__file__).with_name("swift_programs.py"))
#: The servers, in the order of their ports.
KINDS = ("proxy", "account", "container", "object")

_SWIFT = """
[swift-hash]
swift_hash_path_prefix = before
swift_hash_path_suffix = after
[storage-policy:0]
name = only
default = yes
"""
_SERVER = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
bind_timeout = 1
workers = 0
user = {user}
swift_dir = {directory}
devices = {directory}
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
recon_cache_path = {directory}/recon
log_level = WARNING
"""
_STORAGE = """
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
[object-updater]
"""
_FILTERS = ("catch_errors", "gatekeeper", "healthcheck", "cache", "listing_formats", "tempauth")
# Those of which more is said below.
_SET_UP = ("cache", "tempauth")
_PROXY = """
[pipeline:main]
pipeline = {pipeline} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
node_timeout = 5
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
[filter:tempauth]
use = egg:swift#tempauth
user_{project}_{user} = {password} .admin
"""


class Swift:
    """
    A running Swift.

    :param directory: of its own.
    :param port: the first of five that are free.
    """

    def __init__(self, directory: Path, port: int) -> None:
        self._directory = directory
        self._port = port
        self._memcached = port + len(KINDS)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.address = f"http://127.0.0.1:{port}"
        self.auth_url = f"{self.address}/auth/v1.0"

    def start(self) -> bool:
        """Start it; False: another process has got one of the ports."""
        for name in ("disk", "recon"):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        (self._directory / "swift.conf").write_text(_SWIFT)
        self.run("rings", self._port)
        for kind in KINDS:
            self._configure(kind)
            self._launch(kind, [PYTHON, _PROGRAMS, str(self._directory), kind])
        as_user = ["-u", getpass.getuser()] if os.geteuid() == 0 else []
        self._launch("memcached", ["memcached", "-l", "127.0.0.1", "-p", str(self._memcached), "-U", "0", *as_user])
        ports = {kind: self._port + number for number, kind in enumerate(KINDS)} | {"memcached": self._memcached}
        return all(self._listens(name, port) for name, port in ports.items())

    def _configure(self, kind: str) -> None:
        port = self._port + KINDS.index(kind)
        text = _SERVER.format(port=port, user=getpass.getuser(), directory=self._directory)
        if kind == "proxy":
            text += _PROXY.format(
                pipeline=" ".join(_FILTERS), memcached=self._memcached, project=PROJECT, user=USER, password=PASSWORD
            )
            text += "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in _FILTERS if name not in _SET_UP)
        else:
            text += _STORAGE.format(kind=kind)
        (self._directory / f"{kind}.conf").write_text(text)

    def restart_server(self, kind: str) -> None:
        """Start a server that was killed, and wait until it answers."""
        self._launch(kind, [PYTHON, _PROGRAMS, str(self._directory), kind])
        assert self._listens(kind, self._port + KINDS.index(kind)), self.logs()

    def _launch(self, name: str, command: list[str]) -> None:
        with (self._directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _listens(self, name: str, port: int) -> bool:
        def look() -> str:
            if self._processes[name].poll() is not None:
                return "ended"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return "listens"
            return ""

        return wait_for(look) == "listens"

    def kill_server(self, kind: str) -> None:
        """Kill a server, as an outage does."""
        process = self._processes.pop(kind)
        process.kill()
        process.wait(PATIENCE)

    def run(self, command: str, *arguments: object) -> None:
        """Run one of the commands of swift_programs.py."""
        line = [PYTHON, _PROGRAMS, str(self._directory), command, *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def update(self) -> None:
        """Have the container server told what it has missed."""
        self.run("update")

    def fill(self, container: str, count: int) -> None:
        """Put rows into the listing of a container, without objects."""
        self.run("fill", f"AUTH_{PROJECT}", container, count)

    def forget(self, container: str, *names: str) -> None:
        """Leave out objects, which are there, of the listing of a container."""
        self.run("forget", f"AUTH_{PROJECT}", container, *names)

    def stop(self) -> None:
        """End all its processes."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait(PATIENCE)

    def logs(self) -> str:
        """What its processes have written."""
        return "\n".join(path.read_text() for path in self._directory.glob("*.log"))


@contextlib.contextmanager
def swift(directory: Path) -> Iterator[Swift]:
    """A running Swift, in a directory of its own."""
    if shutil.which("memcached") is None:
        pytest.skip("needs the program memcached: install it")
    has_swift = [PYTHON, "-c", "import swift.proxy.server, swift.container.server, swift.obj.server"]
    if not os.path.exists(PYTHON) or subprocess.run(has_swift, capture_output=True, check=False).returncode:
        pytest.skip("needs Swift: install swift-proxy, swift-account, swift-container and swift-object")
    for number in range(10):
        server = Swift(directory / str(number), _free_ports())
        try:
            if server.start():
                yield server
                return
        finally:
            server.stop()
    raise AssertionError(server.logs())


def _free_ports() -> int:
    """The first of five ports that are free now; another process may be faster."""
    for _ in range(100):
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                for port in range(first + 1, first + 5):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
                return first
    raise AssertionError("no free ports")


class _Keystone(http.server.BaseHTTPRequestHandler):
    """
    What clients ask of version 3 of Keystone: which versions there are, and a token for a password or for an
    application credential. The token is that of Swift, which so accepts it.
    """

    protocol_version = "HTTP/1.1"
    swift: Swift

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        links = [{"rel": "self", "href": f"http://127.0.0.1:{self.server.server_address[1]}/v3/"}]
        version = {"id": "v3.14", "status": "stable", "links": links}
        if self.path.rstrip("/") == "/v3":
            self._answer(200, {"version": version})
        elif self.path == "/":
            self._answer(300, {"versions": {"values": [version]}})
        else:
            self._answer(404, {})

    def do_POST(self) -> None:
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v3/auth/tokens":
            self._answer(404, {})
            return
        try:
            project, name, password = _credentials(said["auth"])
            token, url = self._log_in(project, name, password)
        except (KeyError, TypeError, ValueError, urllib.error.HTTPError):
            self._answer(401, {"error": {"code": 401, "title": "Unauthorized", "message": "log in"}})
            return
        self._answer(201, {"token": _described(project, name, url)}, {"X-Subject-Token": token})

    def _log_in(self, project: str, name: str, password: str) -> tuple[str, str]:
        headers = {"X-Auth-User": f"{project}:{name}", "X-Auth-Key": password}
        with urllib.request.urlopen(urllib.request.Request(self.swift.auth_url, headers=headers)) as answer:
            return answer.headers["X-Auth-Token"], answer.headers["X-Storage-Url"]

    def _answer(self, status: int, document: Any, headers: Any = None) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": "application/json", "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)


def _credentials(auth: Any) -> tuple[str, str, str]:
    """Project, user and password; of an application credential, those that it stands for."""
    identity = auth["identity"]
    if identity["methods"] == ["application_credential"]:
        if identity["application_credential"] != {"id": "credential", "secret": "secret"}:
            raise ValueError("unknown")
        return PROJECT, USER, PASSWORD
    user, project = identity["password"]["user"], auth["scope"]["project"]
    if (user["domain"], project["domain"]) != ({"name": "Default"}, {"name": "Default"}):
        raise ValueError("unknown")
    return project["name"], user["name"], user["password"]


def _described(project: str, name: str, url: str) -> Any:
    """What Keystone tells with a token: above all, where Swift is."""
    now = datetime.datetime.now(datetime.timezone.utc)
    domain = {"id": "default", "name": "Default"}
    endpoints = [{"id": "1", "interface": "public", "region": "here", "region_id": "here", "url": url}]
    return {
        "methods": ["password"],
        "issued_at": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "expires_at": (now + datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "user": {"id": "u", "name": name, "domain": domain},
        "project": {"id": "p", "name": project, "domain": domain},
        "roles": [{"id": "r", "name": "member"}],
        "catalog": [{"id": "s", "type": "object-store", "name": "swift", "endpoints": endpoints}],
    }


@contextlib.contextmanager
def keystone(swift: Swift) -> Iterator[str]:
    """A Keystone in front of a Swift: its URL, without a version."""
    handler = type("Keystone", (_Keystone,), {"swift": swift})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
