"""
The namespace of a source: readers that have it in common share blocks.
"""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Mapping
from hashlib import blake2b

import fsspec


def namespace_of(fs: fsspec.AbstractFileSystem) -> str:
    """
    The namespace of a source by its class and all its options, as a digest, since passwords may be among these.

    Limits. An option that cannot be pickled has another namespace in each process, and in each filesystem made with it.
    What the source takes from its environment, such as a profile with credentials, is no option; nor is what an object
    leaves out when it is pickled.
    """
    return blake2b(_said(fs).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _said(value: object) -> str:
    """All that a value says, whatever process asks it."""
    if isinstance(value, fsspec.AbstractFileSystem):
        return f"{_class(value)}({_said(value.storage_args)}, {_said(value.storage_options)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{_said(key)}: {_said(each)}' for key, each in value.items()))}}}"
    if isinstance(value, set | frozenset):
        return f"{_class(value)}({', '.join(sorted(map(_said, value)))})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_said, value))}]"
    if value is None or isinstance(value, bool):
        return repr(value)
    for kind in (str, bytes, int, float):
        if isinstance(value, kind):
            return kind.__repr__(value)  # A class of its own may show asterisks instead of a password.
    try:
        return f"{_class(value)} {pickle.dumps(value).hex()}"
    except Exception:
        # Its representation may be an address, at which another process has another object.
        return f"{_class(value)} {uuid.uuid4()}"


def _class(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
