"""Records that the tests of evaluation share."""

import pytest

from velm.data.synthetic.shapes import Shapes


@pytest.fixture
def records():
    return Shapes(test_size=7, image_size=32).split("test")
