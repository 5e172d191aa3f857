"""
Helper: the figures in an answer to Prometheus.
"""

from __future__ import annotations

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families as parse


def samples(exposition: str, region: str) -> dict[str, float]:
    """The figures of one region, by the rest of their names; none may be there twice."""
    found: dict[str, float] = {}
    for family in parse(exposition):
        for sample in family.samples:
            if sample.labels.get("region") == region:
                name = sample.name.removeprefix("dogpile_filesystem_") + sample.labels.get("cause", "")
                assert name not in found
                found[name] = sample.value
    return found
