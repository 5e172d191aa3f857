"""
Helper: what fsspec's own suites need to know of an S3 behind the cache. The test module has the fixture
``cached_s3``: the filesystem.
"""

from __future__ import annotations

import pytest
from fsspec.tests import abstract


class OverS3(abstract.AbstractFixtures):
    """
    The fixtures of the suites, in the test's bucket.
    """

    @pytest.fixture
    def fs(self, cached_s3):
        return cached_s3

    @pytest.fixture
    def fs_path(self, s3):
        return s3.root

    @pytest.fixture
    def fs_join(self):
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def supports_empty_directories(self):
        return False
