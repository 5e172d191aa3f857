"""
dogpile.cache's own suites, for both backends and the settings that make a difference.
"""

from __future__ import annotations

import io
import pickle
import shutil
import tempfile
from typing import ClassVar

import pytest

pytest.importorskip("dogpile.testing.fixtures", reason="dogpile.cache ships its suites from 1.3 on")

from dogpile.cache import register_backend
from dogpile.cache.api import NO_VALUE, CachedValue
from dogpile.testing.fixtures import _GenericBackendTestSuite, _GenericMutexTestSuite, _GenericSerializerTestSuite

from dogpile_filesystem import RawFSBackend

pytestmark = pytest.mark.filterwarnings("ignore:unknown argument 'arbitrary_arg_:UserWarning")


class AnyValueInFiles(RawFSBackend):
    """
    The raw backend for suites that store strings: a value is pickled into a file, and read from one.
    """

    def get(self, key):
        hit = super().get(key)
        if hit is NO_VALUE:
            return hit
        if not isinstance(hit, CachedValue):
            with hit:
                return hit.read()
        with hit.payload:
            return CachedValue(pickle.load(hit.payload), hit.metadata)

    def set(self, key, value):
        if isinstance(value, bytes):
            super().set(key, io.BytesIO(value))
        else:
            super().set(key, CachedValue(io.BytesIO(pickle.dumps(value.payload)), value.metadata))


class AnyValueInMovedFiles(AnyValueInFiles):
    """
    The same adapter for files that have names, which are moved in.
    """

    def set(self, key, value):
        packed = value if isinstance(value, bytes) else pickle.dumps(value.payload)
        with tempfile.NamedTemporaryFile(delete=False, dir=self.arguments.base_dir) as file:
            file.write(packed)
            file.seek(0)
            RawFSBackend.set(self, key, file if isinstance(value, bytes) else CachedValue(file, value.metadata))


register_backend("tests.any_value_in_files", __name__, "AnyValueInFiles")
register_backend("tests.any_value_in_moved_files", __name__, "AnyValueInMovedFiles")


_made = []


def _arguments(**more):
    _made.append(tempfile.mkdtemp(prefix="conformance-"))
    return {"arguments": {"base_dir": _made[-1], **more}}


def teardown_module():
    for directory in _made:
        shutil.rmtree(directory)


class TestGeneric(_GenericBackendTestSuite, _GenericMutexTestSuite):
    backend = "paylogic.filesystem"
    config_args: ClassVar = _arguments()


class TestGenericSerializer(_GenericSerializerTestSuite, TestGeneric):
    config_args: ClassVar = _arguments()
    test_threaded_dogpile = test_threaded_get_multi = test_mutex_threaded = test_region_expire = None


class TestGenericBounded(TestGeneric):
    config_args: ClassVar = _arguments(cache_size="1MiB", max_entries="100", expiration_time="3600", lock_timeout="60")
    test_threaded_dogpile = test_threaded_get_multi = test_mutex_threaded = test_region_expire = None


class TestGenericWithoutDistributedLock(_GenericBackendTestSuite):
    backend = "paylogic.filesystem"
    config_args: ClassVar = _arguments(distributed_lock=False)
    test_threaded_dogpile = test_threaded_get_multi = test_region_expire = None


class TestGenericLargeValues(TestGeneric):
    config_args: ClassVar = _arguments(large_values=True)


class TestGenericLargeValuesSerializer(_GenericSerializerTestSuite, TestGeneric):
    config_args: ClassVar = _arguments(large_values="yes")
    test_threaded_dogpile = test_threaded_get_multi = test_mutex_threaded = test_region_expire = None


class TestRaw(_GenericBackendTestSuite, _GenericMutexTestSuite):
    backend = "tests.any_value_in_files"
    config_args: ClassVar = _arguments()


class TestRawMovable(_GenericBackendTestSuite, _GenericMutexTestSuite):
    backend = "tests.any_value_in_moved_files"
    config_args: ClassVar = _arguments(file_movable=True, cache_size="10MB")
    test_threaded_dogpile = test_threaded_get_multi = test_mutex_threaded = test_region_expire = None


class TestRawAsItIs(_GenericMutexTestSuite):
    """
    The raw backend without the adapter: the mutex suite, without the one test that stores strings.
    """

    backend = "paylogic.raw_filesystem"
    config_args: ClassVar = _arguments()
    test_reentrant_dogpile = test_mutex_threaded = None
