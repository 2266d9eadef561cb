"""SIGKILL at 20 seeded moments of `velm index`: the index afterwards equals one made anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from following import assert_same_index, disturb
from photos import write_image

from velm.search import Index, update
from velm.search.sources import folder_source

PROGRAM = """
import sys, velm.search.updates as updates, velm
from velm.search.sources import folder_source
updates.PART = 4
pipeline = velm.load(sys.argv[1])
source = folder_source(sys.argv[2])
print("ready", flush=True)
updates.update(pipeline, source, sys.argv[3], batch_size=4, compact=sys.argv[4] == "1")
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_equals_one_made_anew(write_checkpoint, pipeline, tmp_path):
    photos, index = tmp_path / "photos", tmp_path / "index"
    for seed in range(60):
        write_image(photos / f"{seed}.png", seed, width=400, height=300)
    random = np.random.default_rng(0)
    killed = 0
    for number in range(20):
        disturb(photos, random, number)
        arguments = [str(write_checkpoint()), str(photos), str(index), str(number % 3 // 2)]
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(float(random.uniform(0, 0.25)))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
        if (index / "index.json").is_file():
            Index.open(index)
    assert killed >= 10
    update(pipeline, folder_source(photos), index)
    update(pipeline, folder_source(photos), tmp_path / "new")
    assert_same_index(index, tmp_path / "new")
