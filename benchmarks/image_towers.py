"""Images a second that an image tower encodes, or learns from, on one thread of a CPU: what kept memory, bfloat16 and
VELM's gradients of depthwise convolutions do on this machine.

    python benchmarks/image_towers.py
    python benchmarks/image_towers.py --towers torchvision/mobilenet_v2 timm/efficientnet_lite0 vit --batches 8 64
    python benchmarks/image_towers.py --train

Each measurement is a process of its own, on random images of 224 pixels: the better of two passes after a first one, in
processor time. `kept` is `velm.allocation.keep_freed_memory`, as the commands set it on a CPU. With --train, forward
and backward through the whole tower; `plain` has torch's own gradients (velm/layers/depthwise.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import nullcontext

import torch

from velm import _compat
from velm.allocation import keep_freed_memory
from velm.layers.depthwise import DepthwiseConv2d
from velm.registry import image_encoders

TOWERS = ["torchvision/mobilenet_v2", "timm/efficientnet_lite0", "vit"]
ENCODING = ["float32", "float32, kept", "bfloat16, kept"]
TRAINING = ["float32", "bfloat16, plain", "bfloat16"]
OPTIONS = {"vit": {"patch_size": 16, "dim": 384, "depth": 6, "heads": 6}}


def measure(tower: str, batch: int, case: str, train: bool) -> float:
    """Images per second of processor time; `case` is the head of a column."""
    if "kept" in case or train:
        keep_freed_memory("cpu")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = image_encoders.build({"name": tower, **OPTIONS.get(tower, {})}).train(train)
    for module in encoder.modules() if "plain" in case else ():
        if isinstance(module, DepthwiseConv2d):
            module.__class__ = torch.nn.Conv2d
    images = torch.rand(batch, 3, 224, 224)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        with (
            torch.inference_mode(not train),
            torch.autocast("cpu", torch.bfloat16) if "bfloat16" in case else nullcontext(),
        ):
            features = encoder(images).features
        if train:
            features.float().sum().backward()
        seconds.append(time.process_time() - start)
    return batch / min(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", default=TOWERS, help="names of image encoders")
    parser.add_argument("--batches", type=int, nargs="+", default=[32], help="images at a time")
    parser.add_argument("--train", action="store_true", help="forward and backward in place of encoding")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # one measurement, as JSON
    args = parser.parse_args()
    if args.one is not None:
        print(measure(*json.loads(args.one)))
        return
    print(f"{torch.backends.cpu.get_cpu_capability()}, kernels for bfloat16: {_compat.multiplies_bfloat16()}")
    columns = TRAINING if args.train else ENCODING
    print(f"| image tower | batch | {' | '.join(columns)} |\n| --- | --- | --- | --- | --- |")
    for tower in args.towers:
        for batch in args.batches:
            rates = [_in_a_process([tower, batch, case, args.train]) for case in columns]
            print(f"| `{tower}` | {batch} | " + " | ".join(f"{rate:.1f}" for rate in rates) + " |", flush=True)


def _in_a_process(case: list[str | int | bool]) -> float:
    line = [sys.executable, __file__, "--one", json.dumps(case)]
    return float(subprocess.run(line, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
