"""A server of a tiny model, shared by the tests of a file."""

from __future__ import annotations

import pytest
from served import Served, tiny_pipeline


@pytest.fixture(scope="module")
def served():
    served = Served(tiny_pipeline())
    yield served
    served.close()


@pytest.fixture
def serve():
    """`serve(pipeline, **options of Served)`, closed after the test."""
    opened = []

    def start(pipeline=None, **options):
        opened.append(Served(tiny_pipeline() if pipeline is None else pipeline, **options))
        return opened[-1]

    yield start
    for each in opened:
        each.close()
