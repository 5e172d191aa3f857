"""
Pollers: what changed in a directory or a store since the last call.

May import: sources, lockfile.
"""

from dogpile_filesystem.poller.event import Event, PollerUnavailable
from dogpile_filesystem.poller.inotify import INotifyPoller
from dogpile_filesystem.poller.known import Known
from dogpile_filesystem.poller.local import FilePoller
from dogpile_filesystem.poller.making import make_poller, register_poller
from dogpile_filesystem.poller.options import Options
from dogpile_filesystem.poller.poller import Poller, Stats
from dogpile_filesystem.poller.snapshot import Content, contents_of
from dogpile_filesystem.poller.store import StorePoller
from dogpile_filesystem.poller.swift import SwiftPoller

__all__ = [
    "Content",
    "Event",
    "FilePoller",
    "INotifyPoller",
    "Known",
    "Options",
    "Poller",
    "PollerUnavailable",
    "Stats",
    "StorePoller",
    "SwiftPoller",
    "contents_of",
    "make_poller",
    "register_poller",
]
