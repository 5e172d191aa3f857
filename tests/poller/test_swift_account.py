"""
URLs of Swift, and credentials from options and from the environment.
"""

from __future__ import annotations

import pytest

from dogpile_filesystem.poller import SwiftPoller
from dogpile_filesystem.poller.swift_account import Account, Place

V1 = {"auth_url": "http://host/auth/v1.0", "username": "account:user", "password": "secret"}


@pytest.mark.parametrize(
    ("url", "container", "prefix", "plain"),
    [
        ("swift://c", "c", "", "swift://c"),
        ("swt://c/", "c", "", "swift://c"),
        ("swifts://c/in", "c", "in/", "swift://c/in"),
        ("swts://c/in/d/", "c", "in/d/", "swift://c/in/d"),
        ("swift://a b%20?/x\ny", "a b%20?", "x\ny/", "swift://a b%20?/x\ny"),
        ("swift://c//in", "c", "/in/", "swift://c//in"),
    ],
)
def test_urls(url, container, prefix, plain):
    """A URL names a container and a prefix, in which nothing is quoted."""
    place = Place.parse(url)
    assert (place.container, place.prefix, place.url, place.credentials) == (container, prefix, plain, {})
    assert place.is_secure == url.partition("://")[0].endswith("s")


@pytest.mark.parametrize("url", ["swift://", "swift:///a", "swift", "s3://c", "swift:c"])
def test_no_url(url):
    """What is none is refused, and the message shows one, and not what may be a password."""
    with pytest.raises(ValueError, match="swift://container/prefix"):
        Place.parse(url)


@pytest.mark.parametrize(
    ("scheme", "address", "said"),
    [
        ("swift", "http://host:5000/v3", {"username": "u", "project_name": "t"}),
        ("swts", "https://host", {"username": "u", "project_name": "t"}),
        ("swt", "http://host:80/auth/v1.0", {"username": "t:u"}),
    ],
)
def test_old_urls(scheme, address, said):
    """A URL of the predecessor has the credentials, and only they have the password."""
    with pytest.warns(FutureWarning, match="pass swifts?://c,") as warned:
        place = Place.parse(f"{scheme}://u+t:p@ss:w/rd@{address.partition('://')[2]}?c")
    assert place.credentials == {"auth_url": address, "password": "p@ss:w/rd", **said}
    assert "w/rd" not in place.url + repr(place) + str(warned[0].message)


def test_options_before_variables():
    """An option is taken before its variable, and taken out of the options of the poller."""
    options = {"username": "mine", "recurse": True, "auth_version": 3}
    environment = {
        "OS_AUTH_URL": "http://host/v3",
        "OS_USERNAME": "other",
        "OS_PASSWORD": "p",
        "OS_REGION_NAME": "here",
    }
    account = Account.of(Place.parse("swift://c"), options, environment)
    assert (account.username, account.password, account.region_name) == ("mine", "p", "here")
    assert options == {"recurse": True}
    assert "'p'" not in repr(account)


@pytest.mark.parametrize(
    ("options", "environment", "version"),
    [
        (V1, {}, "1"),
        (V1, {"OS_IDENTITY_API_VERSION": "3"}, "1"),
        ({**V1, "auth_version": "3"}, {}, "3"),
        ({**V1, "auth_url": "http://host"}, {}, "3"),
        ({**V1, "auth_url": "http://host"}, {"OS_AUTH_VERSION": "1"}, "3"),
        ({}, {"ST_AUTH": "http://host", "ST_USER": "u", "ST_KEY": "k"}, "1"),
        ({}, {"OS_AUTH_URL": "http://host", "OS_AUTH_VERSION": "2", "OS_USERNAME": "u", "OS_PASSWORD": "p"}, "2"),
    ],
)
def test_version(options, environment, version):
    """The version of the authentication is what is said, or what the URL to log in looks like, or 3."""
    assert Account.of(Place.parse("swift://c"), dict(options), environment).auth_version == version


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("swift://c", {}, "OS_AUTH_URL and OS_PASSWORD"),
        ("swift://c", {"auth_version": 1, "auth_url": "http://host"}, "ST_AUTH, ST_USER and ST_KEY"),
        ("swift://c", {**V1, "auth_version": "4"}, "auth_version='4'"),
        ("swifts://c", V1, "https"),
    ],
)
def test_misuse(url, options, message):
    """What is missing or contradicts itself is refused at once, and the message says what to pass."""
    with pytest.raises(ValueError, match=message):
        Account.of(Place.parse(url), dict(options), {})


def test_unknown_options():
    """An unknown option of the poller is refused before anything is imported or asked."""
    with pytest.raises(TypeError, match="recurs"):
        SwiftPoller("swift://c", recurs=True, **V1)
    with pytest.raises(TypeError, match="URL"):
        SwiftPoller(b"swift://c", **V1)
