"""
How to reach a container of Swift: its URL, and the credentials, from options or from the environment.

====================  ===================================================================
option                variable, if the option is not passed
====================  ===================================================================
``auth_version``      ``OS_AUTH_VERSION``, ``OS_IDENTITY_API_VERSION``, ``ST_AUTH_VERSION``
``auth_url``          ``OS_AUTH_URL``; with version 1 ``ST_AUTH``
``username``          ``OS_USERNAME``; with version 1 ``ST_USER``
``password``          ``OS_PASSWORD``; with version 1 ``ST_KEY``
any other             ``OS_`` and its name
====================  ===================================================================
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

_URL = re.compile(r"(swift|swt)(s?)://([^/]+)(/.*)?", re.DOTALL)
# That of the predecessor: with user, project, password and the address of Keystone, and the container behind "?".
_OLD_URL = re.compile(r"(?:swift|swt)(s?)://([^:/?]+)\+([^:/?]+):(.*)@([^@?]+)\?([^/?&]+)", re.DOTALL)
_V1 = {"1", "1.0", "v1", "v1.0"}
_VERSIONS = {*_V1, "2", "2.0", "v2", "v2.0", "3", "3.0", "v3", "v3.0"}
_OF_V1 = {"auth_url": "ST_AUTH", "username": "ST_USER", "password": "ST_KEY"}
_INSTALL = "pip install 'dogpile_filesystem[swift]'"
# What keystoneauth1 is told for a password.
_OF_PASSWORD = (
    *("username", "user_id", "user_domain_name", "user_domain_id", "password"),
    *("project_name", "project_id", "project_domain_name", "project_domain_id"),
)
#: How often a request is made once more, after how many seconds: the caller polls again anyway.
_RETRIES, _BACKOFF = 1, 0.2


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """
    Where the objects are.

    :ivar container: its name.
    :ivar prefix: with which their names begin: empty, or with a slash at its end.
    :ivar credentials: those that the URL had, as options.
    :ivar is_secure: whether credentials may only be sent over https.
    """

    container: str
    prefix: str
    credentials: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    is_secure: bool = False

    @classmethod
    def parse(cls, url: str) -> Place:
        """
        The place that a URL means: ``swift://container/prefix``, in which nothing is quoted.

        ``swt`` is short for ``swift``, and ``swifts`` and ``swts`` insist on https.

        :raises ValueError: it is none.
        """
        old = _OLD_URL.fullmatch(url)
        if old is not None:
            secure, user, project, password, address, container = old.groups()
            new = f"swift{secure}://{container}"
            what = f"the URL has a password: pass {new}, and username, project_name, password and auth_url as options"
            warnings.warn(f"{what}, or in variables such as OS_PASSWORD", FutureWarning, stacklevel=5)
            credentials = {"auth_url": f"http{secure}://{address}", "password": password}
            if _is_v1(credentials["auth_url"]):
                credentials["username"] = f"{project}:{user}"
            else:
                credentials |= {"username": user, "project_name": project}
            return cls(container, "", credentials, bool(secure))
        match = _URL.fullmatch(url)
        if match is None:
            raise ValueError("this is no URL of Swift: pass one such as swift://container/prefix")
        prefix = (match[4] or "").removeprefix("/").removesuffix("/")
        return cls(match[3], f"{prefix}/" if prefix else "", {}, bool(match[2]))

    @property
    def url(self) -> str:
        """The URL, without credentials."""
        return f"swift://{self.container}/{self.prefix}".removesuffix("/")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """
    The credentials, and what else a connection needs.

    :ivar auth_version: ``"1"`` is that of a Swift without Keystone; ``"2"`` and ``"3"`` are Keystone's. Empty: 1 if the
     URL ends with ``/v1.0``, else 3.
    :ivar auth_url: where to log in.
    :ivar username: with version 1 often ``account:user``.
    :ivar endpoint_type: ``"public"``, ``"internal"`` or ``"admin"``; empty: the first.
    :ivar cacert: a file with the certificates to trust; empty: those of the system.
    :ivar timeout: seconds for each request. Default 60.
    :ivar session: a session of keystoneauth1, instead of all that concerns logging in.
    """

    auth_version: str = ""
    auth_url: str = ""
    username: str = ""
    user_id: str = ""
    password: str = dataclasses.field(default="", repr=False)
    project_name: str = ""
    project_id: str = ""
    user_domain_name: str = ""
    user_domain_id: str = ""
    project_domain_name: str = ""
    project_domain_id: str = ""
    application_credential_id: str = ""
    application_credential_secret: str = dataclasses.field(default="", repr=False)
    region_name: str = ""
    endpoint_type: str = ""
    storage_url: str = ""
    cacert: str = ""
    timeout: float = 60.0
    session: Any = None

    @classmethod
    def of(cls, place: Place, options: dict[str, Any], environment: Mapping[str, str] = os.environ) -> Account:
        """
        Take what concerns logging in out of the options, and look for the rest in the environment.

        :raises ValueError: something is missing, or contradicts the URL.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        found = {name: options.pop(name) for name in names if options.get(name) is not None}
        if "session" in found:
            return cls(**found)
        found = {**place.credentials, **found}
        texts = [name for name in names if name not in ("timeout", "session")]
        version = str(found.get("auth_version") or _version(found, environment))
        for name in texts:
            variable = _OF_V1.get(name) if version in _V1 else None
            found.setdefault(name, environment.get(variable or f"OS_{name.upper()}", ""))
        account = cls(**{**found, "auth_version": version})
        account._check(place)
        return account

    def _check(self, place: Place) -> None:
        if self.auth_version not in _VERSIONS:
            raise ValueError(f"auth_version={self.auth_version!r}: pass '1', '2' or '3'")
        is_complete = (self.username or self.user_id) and self.password
        if not (self.auth_url and (is_complete or self.application_credential_id)):
            first, last = ("ST_AUTH, ST_USER", "ST_KEY") if self.auth_version in _V1 else ("OS_AUTH_URL", "OS_PASSWORD")
            what = "needs credentials: pass auth_url, username and password"
            raise ValueError(f"{place.url} {what}, or set variables such as {first} and {last}")
        if place.is_secure and not self.auth_url.startswith("https://"):
            raise ValueError(f"auth_url={self.auth_url!r}: a URL with swifts:// or swts:// needs one with https://")

    def connect(self) -> Any:
        """
        A connection of python-swiftclient. It logs in when it is used.

        :raises ImportError: a package is missing.
        """
        client = _imported("swiftclient")
        options = {"region_name": self.region_name, "endpoint_type": self.endpoint_type, "service_type": "object-store"}
        shared = {
            "retries": _RETRIES,
            "starting_backoff": _BACKOFF,
            "timeout": self.timeout,
            "cacert": self.cacert or None,
            "os_options": {name: value for name, value in options.items() if value},
            "preauthurl": self.storage_url or None,
        }
        if self.session is None and self.auth_version in _V1:
            return client.Connection(self.auth_url, self.username, self.password, auth_version="1", **shared)
        return client.Connection(session=self.session or self._session(), **shared)

    def _session(self) -> Any:
        identity, session = _imported("keystoneauth1.identity"), _imported("keystoneauth1.session")
        if self.application_credential_id:
            plugin = identity.v3.ApplicationCredential(
                self.auth_url,
                self.application_credential_secret,
                application_credential_id=self.application_credential_id,
            )
        else:
            said = {name: getattr(self, name) for name in _OF_PASSWORD if getattr(self, name)}
            plugin = identity.Password(self.auth_url, default_domain_name="Default", **said)
        return session.Session(plugin, verify=self.cacert or True, timeout=self.timeout)


def _version(found: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    names = ("OS_AUTH_VERSION", "OS_IDENTITY_API_VERSION", "ST_AUTH_VERSION")
    said = next((environment[name] for name in names if environment.get(name)), "")
    url = found.get("auth_url") or environment.get("OS_AUTH_URL", "")
    if url:
        return "1" if _is_v1(url) else (said if said and "auth_url" not in found else "3")
    return said or ("1" if environment.get("ST_AUTH") else "3")


def _is_v1(auth_url: str) -> bool:
    return re.search(r"/v1(\.0)?/?$", auth_url) is not None


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"a poller of Swift needs {name.partition('.')[0]}: {_INSTALL}") from error
