"""Caption a folder of images on a Ray cluster; `path`, `caption`, `score` and `error` as Parquet.

    pip install 'velm[ray]'
    python examples/ray/caption.py runs/quickstart/best.ckpt images/ --output captions --workers 2

Without a cluster, Ray starts one on this machine. On GPUs: --gpus 1, one for each worker.
"""

from __future__ import annotations

import argparse

import ray

from velm.data.images.names import find_images
from velm.integrations.ray import CaptionImages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("images", nargs="+", help="images, or folders of images, which every machine can read")
    parser.add_argument("--output", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="of each worker")
    parser.add_argument("--batch_size", type=int, default=64)
    args = parser.parse_args()

    ray.init(address=None, num_cpus=args.workers, include_dashboard=False, object_store_memory=200 * 1024**2)
    images = ray.data.from_items([{"path": path} for path in find_images(args.images)])
    captions = images.map_batches(
        CaptionImages,
        fn_constructor_kwargs={"checkpoint": args.checkpoint, "batch_size": args.batch_size},
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        batch_size=args.batch_size,
        num_gpus=args.gpus or None,
    )
    captions.write_parquet(args.output)


if __name__ == "__main__":
    main()
