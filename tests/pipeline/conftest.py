"""Images that the tests of the pipeline share."""

import numpy as np
import pytest


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 32 + 4 * i, 3), dtype=np.uint8) for i in range(3)]
