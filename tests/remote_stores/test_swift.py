"""
A poller of Swift, on a real one: the same table as for local directories, listings of any length, outages, and what may
be in a name.
"""

from __future__ import annotations

import contextlib
import itertools
import json

import pytest
from polling import reported
from situations import BY_NAME, SITUATIONS
from swift_server import PASSWORD, PROJECT, USER
from swift_tree import SwiftTree

from dogpile_filesystem.poller import PollerUnavailable, SwiftPoller, make_poller

swiftclient = pytest.importorskip("swiftclient")
identity = pytest.importorskip("keystoneauth1.identity")
session = pytest.importorskip("keystoneauth1.session")

_numbers = itertools.count(1)
IN_STORES = [situation.name for situation in SITUATIONS if not situation.is_local]
both = pytest.mark.parametrize("recurse", [False, True], ids=["flat", "deep"])


@pytest.fixture
def options(swift):
    """
    The credentials for a Swift that stands alone.
    """
    return {"auth_url": swift.auth_url, "username": f"{PROJECT}:{USER}", "password": PASSWORD}


@pytest.fixture
def connection(options):
    with contextlib.closing(swiftclient.Connection(*options.values())) as connection:
        yield connection


@pytest.fixture
def container():
    return f"container-{next(_numbers)}"


@pytest.fixture
def tree(connection, container):
    """
    An empty container.
    """
    return SwiftTree(connection, container)


@pytest.fixture
def url(tree, container):
    return f"swift://{container}"


@pytest.fixture
def watch(options):
    """
    Makes pollers with the credentials, which are closed at the end.
    """
    with contextlib.ExitStack() as stack:

        def make(url, **more):
            return stack.enter_context(make_poller(url, **options, **more))

        yield make


@both
@pytest.mark.parametrize("name", IN_STORES)
def test_situations(tree, watch, url, name, recurse):
    """Each step is reported once, and nothing else."""
    situation = BY_NAME[name]
    for start in situation.start:
        tree.write(start)
    poller = watch(url, recurse=recurse)
    assert reported(poller, url) == {}
    for step in situation.steps:
        step.act(tree)
        assert reported(poller, url) == step.expected(recurse)
    assert reported(poller, url) == {}


@both
@pytest.mark.parametrize("name", ["tree removed and made again", "renamed into a directory", "created and deleted"])
def test_while_down(tree, options, url, tmp_path, name, recurse):
    """A poller with a state reports what happened while it was not running."""
    for start in BY_NAME[name].start:
        tree.write(start)
    state = tmp_path / "state"
    SwiftPoller(url, recurse=recurse, state=state, **options).get_new_events()
    for step in BY_NAME[name].steps:
        step.act(tree)
        with SwiftPoller(url, recurse=recurse, state=state, **options) as poller:
            assert reported(poller, url) == step.expected(recurse)


def test_same_bytes_again(tree, watch, url):
    """The same bytes stored again are a modification, and so is nothing else than a look."""
    tree.write("a")
    poller = watch(url)
    assert poller.get_new_events() == []
    tree.write("a")
    assert reported(poller, url) == {"a": "modified"}
    assert poller.get_new_events() == []


def test_attributes(tree, watch, url):
    """An event has the size of the object, and an identity that tells its versions apart."""
    poller = watch(url)
    poller.get_new_events()
    tree.write("a", "12345")
    [first] = poller.get_new_events()
    tree.write("a", "54321")
    [second] = poller.get_new_events()
    assert first.size == second.size == 5
    assert first.identity != second.identity


def test_long_listings(swift, tree, watch, url, container):
    """A listing of more than 10,000 objects is looked at as a whole, and a change at its end is seen."""
    swift.fill(container, 25_000)
    poller = watch(url, existing=True)
    assert len(poller.get_new_events()) == 25_000
    assert poller.get_new_events() == []
    tree.write("row-0024999", "longer")
    tree.write("row-0025000")
    assert reported(poller, url) == {"row-0024999": "modified", "row-0025000": "created"}


def test_many_directories(swift, tree, watch, url, monkeypatch):
    """Where a page ends at a directory, the next one begins behind it."""
    for name in ("a/1", "a/2", "b", "c/1", "c/2", "d/1", "e"):
        tree.write(name)
    poller = watch(url, directories=True, existing=True)
    whole = poller._connection.get_container
    monkeypatch.setattr(poller._connection, "get_container", lambda *more, **said: whole(*more, **said, limit=1))
    assert reported(poller, url) == dict.fromkeys(("a", "b", "c", "d", "e"), "created")


def test_outage_of_listings(swift, tree, watch, url):
    """While the container's servers are down nothing is known; afterwards nothing is reported that did not happen."""
    for name in ("changed", "deleted", "kept"):
        tree.write(name)
    poller = watch(url)
    assert poller.get_new_events() == []
    swift.kill_server("container")
    try:
        tree.write("changed", "longer")
        tree.write("new")
        tree.delete("deleted")
        with pytest.raises(PollerUnavailable, match="503"):
            poller.get_new_events()
    finally:
        swift.restart_server("container")
    # The listing does not know of it yet.
    assert poller.get_new_events() == []
    swift.update()
    assert reported(poller, url) == {"changed": "modified", "deleted": "deleted", "new": "created"}
    assert poller.get_new_events() == []


def test_listing_that_lags(swift, tree, connection, watch, url, container):
    """An object that is missing from the listing is kept as long as it is there itself."""
    for name in ("a", "d/b", "d/gone"):
        tree.write(name)
    poller = watch(url, recurse=True)
    assert poller.get_new_events() == []
    swift.forget(container, "a", "d/b", "d/gone")
    assert [row["name"] for row in connection.get_container(container)[1]] == []
    with contextlib.suppress(swiftclient.ClientException):
        tree.delete("d/gone")
    assert reported(poller, url) == {"d/gone": "deleted"}
    assert poller.stats().skipped == 2
    assert poller.get_new_events() == []
    tree.write("a", "longer")
    assert reported(poller, url) == {"a": "modified"}


def test_unconfirmed(swift, tree, watch, url, container):
    """If nobody can say whether an object is there, nothing is known."""
    tree.write("a")
    poller = watch(url)
    assert poller.get_new_events() == []
    swift.forget(container, "a")
    swift.kill_server("object")
    try:
        with pytest.raises(PollerUnavailable, match="503"):
            poller.get_new_events()
    finally:
        swift.restart_server("object")
    assert poller.get_new_events() == []
    tree.delete("a")
    assert reported(poller, url) == {"a": "deleted"}


def test_mass_deletion(swift, tree, watch, url, container):
    """More deletions than ``max_deleted`` allows are refused before each of them is asked for."""
    swift.fill(container, 100)
    poller = watch(url, max_deleted=0.5)
    assert poller.get_new_events() == []
    swift.forget(container, *(f"row-{number:07}" for number in range(60)))
    with pytest.raises(PollerUnavailable, match="max_deleted"):
        poller.get_new_events()


@pytest.mark.parametrize(
    "name", ["a//b", "new\nline", " sp ace ", "/lead", "//", "\u00fcn\u00ef", "a%20b?c=d#e", "\u20ac/x"]
)
def test_names(tree, watch, url, name):
    """A name is reported as it is, whatever it has in it, and its deletion is confirmed under that name."""
    tree.write("lead")
    poller = watch(url, recurse=True)
    assert poller.get_new_events() == []
    tree.write(name)
    assert poller.get_new_events() == [(f"{url}/{name}", "created")]
    tree.write(name, "longer")
    assert poller.get_new_events() == [(f"{url}/{name}", "modified")]
    tree.delete(name)
    assert poller.get_new_events() == [(f"{url}/{name}", "deleted")]


def test_prefix(tree, watch, url):
    """With a prefix, only what lies below it is watched."""
    tree.write("in/a")
    for recurse, expected in ((False, {"b"}), (True, {"b", "d/c"})):
        poller = watch(f"{url}/in", recurse=recurse)
        assert poller.get_new_events() == []
        for name in ("inn", "in", "in/b", "in/d/c"):
            tree.write(name, str(recurse))
        assert reported(poller, f"{url}/in").keys() == expected


@both
def test_marked_directories(tree, watch, url, recurse):
    """What marks a directory is none of the files, and with ``directories=True`` a directory."""
    plain, full = watch(url, recurse=recurse), watch(url, recurse=recurse, directories=True)
    assert plain.get_new_events() == full.get_new_events() == []
    tree.write("d/", "")
    tree.write("e", "", content_type="application/directory")
    tree.write("f/", "a file, whatever its name")
    assert plain.get_new_events() == ([(f"{url}/f/", "created")] if recurse else [])
    assert {subject.removeprefix(url) for subject, _ in full.get_new_events()} >= {"/d", "/e"}


def test_container_is_missing(connection, watch, container):
    """A container that is missing is an error, and its return shows what is different."""
    url = f"swift://{container}"
    poller = watch(url)
    with pytest.raises(PollerUnavailable, match="404") as raised:
        poller.get_new_events()
    assert raised.value.filename == url
    tree = SwiftTree(connection, container)
    assert poller.get_new_events() == []
    tree.write("a")
    assert reported(poller, url) == {"a": "created"}
    tree.delete("a")
    connection.delete_container(container)
    with pytest.raises(PollerUnavailable, match="404"):
        poller.get_new_events()
    connection.put_container(container)
    assert reported(poller, url) == {"a": "deleted"}


def test_create(watch, container):
    """With ``create=True`` a missing container is made."""
    assert watch(f"swift://{container}", create=True).get_new_events() == []


def test_another_account(tree, options, url, tmp_path):
    """A state is not used for a container of this name in another account."""
    state = tmp_path / "state"
    tree.write("a")
    with SwiftPoller(url, state=state, **options) as poller:
        assert poller.get_new_events() == []
    with SwiftPoller(url, state=state, **options) as poller:
        poller._account = lambda: "/v1/AUTH_other"
        with pytest.raises(PollerUnavailable, match="rebind"):
            poller.get_new_events()
    with SwiftPoller(url, state=state, rebind=True, **options) as poller:
        assert poller.get_new_events() == []


FORKING = """
    import json, os, sys
    from dogpile_filesystem.poller import make_poller

    _, url, state, options = sys.argv
    poller = make_poller(url, state=state, existing=True, **json.loads(options))
    assert poller.get_new_events() == []
    poller._connection.put_object(url.rpartition("/")[2], "a", "1")
    if os.fork() == 0:
        print([event for _, event in poller.get_new_events()], flush=True)
        poller.close()
        os._exit(0)
    os.wait()
    print(poller.get_new_events(), flush=True)
"""


def test_after_a_fork(tree, options, url, spawn, tmp_path):
    """A child of fork looks with connections of its own, and what it acknowledges its parent does not get."""
    process = spawn(FORKING, url, tmp_path / "state", json.dumps(options))
    assert process.communicate()[0] == "['created']\n[]\n"


# Logging in


def reports(poller, tree):
    """Whether a poller works."""
    assert poller.get_new_events() == []
    tree.write("new")
    return [event for _, event in poller.get_new_events()] == ["created"]


@pytest.mark.parametrize("version", ["", "/v3"])
def test_keystone(keystone, tree, url, version):
    """Keystone's version 3 is used with options, whether its URL names the version or not."""
    options = {"auth_url": f"{keystone}{version}", "username": USER, "password": PASSWORD, "project_name": PROJECT}
    with make_poller(url, auth_version=3, **options) as poller:
        assert reports(poller, tree)


def test_application_credential(keystone, tree, url):
    """An application credential stands for user and project."""
    secret = {"application_credential_id": "credential", "application_credential_secret": "secret"}
    with make_poller(url, auth_url=f"{keystone}/v3", **secret) as poller:
        assert reports(poller, tree)


def test_environment(keystone, tree, url, monkeypatch):
    """What is not passed comes from the variables of OpenStack's own clients."""
    said = {"AUTH_URL": f"{keystone}/v3", "USERNAME": USER, "PASSWORD": PASSWORD, "PROJECT_NAME": PROJECT}
    for name, value in {**said, "IDENTITY_API_VERSION": "3", "USER_DOMAIN_NAME": "Default"}.items():
        monkeypatch.setenv(f"OS_{name}", value)
    with make_poller(url) as poller:
        assert reports(poller, tree)


def test_environment_of_version_1(options, tree, url, monkeypatch):
    """Without Keystone, these are the variables of Swift's own client."""
    for name, value in zip(("ST_AUTH", "ST_USER", "ST_KEY"), options.values(), strict=True):
        monkeypatch.setenv(name, value)
    with make_poller(url) as poller:
        assert reports(poller, tree)


def test_session(keystone, tree, url):
    """A session of keystoneauth1 is used as it is, and so is a connection."""
    plugin = identity.Password(
        keystone, username=USER, password=PASSWORD, project_name=PROJECT, default_domain_name="Default"
    )
    with make_poller(url, session=session.Session(plugin)) as poller:
        assert reports(poller, tree)
    tree.delete("new")
    with make_poller(url, connection=swiftclient.Connection(session=session.Session(plugin))) as poller:
        assert reports(poller, tree)


@pytest.mark.parametrize("has_keystone", [False, True])
def test_wrong_password(swift, keystone, tree, options, url, has_keystone):
    """A password that is refused is an error of the call: the server may know it later."""
    if has_keystone:
        options = {"auth_url": keystone, "username": USER, "project_name": PROJECT}
    with make_poller(url, **{**options, "password": "wrong"}) as poller, pytest.raises(PollerUnavailable) as raised:
        poller.get_new_events()
    assert "wrong" not in str(raised.value)


def test_old_urls(swift, keystone, tree, container):
    """The URLs of the predecessor work, with a warning, and no subject has the password."""
    for address in (f"{keystone}/v3", swift.auth_url):
        old = f"swt://{USER}+{PROJECT}:{PASSWORD}@{address.removeprefix('http://')}?{container}"
        with pytest.warns(FutureWarning, match=f"swift://{container}") as warned:
            poller = make_poller(old)
        assert PASSWORD not in str(warned[0].message)
        with poller:
            poller.get_new_events()
            tree.write(address[-2:])
            assert poller.get_new_events() == [(f"swift://{container}/{address[-2:]}", "created")]
