"""What `velm --help` and `velm plugins` cost beside bare Python with the same standard modules.

    python benchmarks/startup.py

Commands take turns (A B C A B C ...); medians of wall seconds and their ratio to the first.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "argparse, json, importlib.metadata": [sys.executable, "-c", "import argparse, json, importlib.metadata"],
    "velm --help": [sys.executable, "-m", "velm.cli", "--help"],
    "velm plugins": [sys.executable, "-m", "velm.cli", "plugins"],
}


def main(repeats: int = 15) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    floor = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:<36} {middle:.3f} s ({min(values):.3f} to {max(values):.3f})  {middle / floor:.2f} x")


if __name__ == "__main__":
    main()
