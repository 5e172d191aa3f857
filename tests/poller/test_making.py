"""
Which poller a URL gets.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from dogpile_filesystem.poller import FilePoller, INotifyPoller, make_poller, making, register_poller


@pytest.fixture
def makers(monkeypatch):
    monkeypatch.setattr(making, "_makers", dict(making._makers))


def test_local(tree):
    """A path, or a ``file://`` URL, gets a poller with hints."""
    pytest.importorskip("inotify_simple")
    for url in (tree.root, f"file://{tree.root}", tree.root.encode()):
        with make_poller(url, recurse=True) as poller:
            assert type(poller) is INotifyPoller
            assert poller.get_new_events() == []


def test_without_inotify(tree, monkeypatch):
    """Without inotify_simple, a path gets a poller without hints; one with hints says what to install."""
    monkeypatch.setitem(sys.modules, "inotify_simple", None)
    with make_poller(tree.root) as poller:
        assert type(poller) is FilePoller
    with pytest.raises(ImportError, match=r"pip install 'dogpile_filesystem\[inotify\]'"):
        INotifyPoller(tree.root)


def test_unknown_scheme():
    """A scheme that nobody registered is refused, and the message names those that are known."""
    pytest.importorskip("fsspec")
    with pytest.raises(ValueError, match=r"no poller for gopher://.*file.*swift"):
        make_poller("gopher://host/path")


@pytest.mark.parametrize(
    ("url", "extra", "package"), [("s3://bucket", "fsspec", "fsspec"), ("swift://container", "swift", "swiftclient")]
)
def test_missing_extras(monkeypatch, url, extra, package):
    """Where a package is missing, the message says what to install."""
    monkeypatch.setitem(sys.modules, package, None)
    options = {"auth_url": "https://host/v1.0", "username": "u", "password": "p"} if extra == "swift" else {}
    with pytest.raises(ImportError, match=rf"pip install 'dogpile_filesystem\[{extra}\]'"):
        make_poller(url, **options)


def test_registered(makers):
    """A poller that is registered for a scheme is made for its URLs, with the options."""
    made = []
    register_poller("mine", "other")(lambda url, **options: made.append((url, options)))
    make_poller("mine://x", recurse=True)
    make_poller("OTHER::file:///x")
    assert made == [("mine://x", {"recurse": True}), ("OTHER::file:///x", {})]
    with pytest.raises(ValueError, match="is no scheme"):
        register_poller("no scheme")


def test_no_dependency():
    """Without extras, pollers import none of the optional packages before one is made."""
    program = """
import sys, dogpile_filesystem.poller
print({'fsspec', 'inotify_simple', 'swiftclient', 'keystoneauth1'} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
