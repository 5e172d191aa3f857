"""
Addresses of files, without the secrets that may be part of them. Pure: no I/O here.
"""

from __future__ import annotations

import re
from typing import Any

#: Behind ``//`` in URLs of these protocols comes a host. In others it is a bucket or a path, in which an ``@`` is a
#: letter as any other.
_HAVE_HOST = {
    *("http", "https", "ftp", "ftps", "sftp", "ssh", "webdav", "webdavs", "dav", "davs", "smb", "hdfs", "webhdfs"),
}
#: Parameters that are the signature of a URL, or belong to one, in lower case.
_SECRETS = {"signature", "sig", "token", "access_token", "awsaccesskeyid", "googleaccessid", "key-pair-id"}
_SECRET_PREFIXES = ("x-amz-", "x-goog-")
_PARTS = re.compile(r"([^/?#]*)([^?#]*)(\?[^#]*)?(.*)", re.DOTALL)
#: Parameters that belong to a signature, of AWS and CloudFront or of Azure. Without it, they may mean anything.
_OF_SIGNATURE = {"expires", "policy"}
_OF_SIG = {
    *("sv", "ss", "srt", "se", "st", "sp", "spr", "sr", "sip", "si"),
    *("skoid", "sktid", "skt", "ske", "sks", "skv"),
}


def url_of(fs: Any, path: str) -> str:
    """
    The URL of a file of a filesystem, fit to be stored and shown, and the same whoever may read the file.

    Name and password of a user are left out, and so are the parameters of a signed HTTP URL. To read the file, use the
    path as it is.

    :param fs: a filesystem of fsspec.
    :param path: of the file, as the filesystem's methods get it.
    """
    return without_secrets(str(fs.unstrip_protocol(path)))


def without_secrets(url: str) -> str:
    """A URL without name and password of a user, and without the parameters of a signature."""
    protocol, separator, rest = url.partition("://")
    authority, where, query, fragment = _PARTS.fullmatch(rest).groups("")  # type: ignore[union-attr]
    kind = protocol.rpartition("::")[2]  # Of the last of a chain, which the rest belongs to.
    if kind in _HAVE_HOST or ":" in authority.rpartition("@")[0]:
        authority = authority.rpartition("@")[2]
    if kind in {"http", "https"}:
        query = _without_secrets(query)
    return f"{protocol}{separator}{authority}{where}{query}{fragment}"


def _without_secrets(query: str) -> str:
    parameters = query[1:].split("&")
    names = {_name(parameter) for parameter in parameters}
    dropped = _SECRETS | (_OF_SIGNATURE if "signature" in names else set()) | (_OF_SIG if "sig" in names else set())
    kept = [
        parameter
        for parameter in parameters
        if _name(parameter) not in dropped and not _name(parameter).startswith(_SECRET_PREFIXES)
    ]
    return "?" + "&".join(kept) if any(kept) else ""


def _name(parameter: str) -> str:
    return parameter.partition("=")[0].lower()
