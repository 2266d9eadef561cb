"""The images and captions of whole runs, and CLIP's tokenizer as a folder that VELM can read."""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path

from benchmarks.processes import ROOT

__all__ = ["VARIABLE", "data_folder", "write_rows", "write_tokenizer"]

VARIABLE = "VELM_FLICKR8K"
PAD, UNKNOWN = -4, -3  # ids of the two rarest merges; CLIP's vocabulary has no such tokens


def data_folder() -> Path:
    """The folder with captions.csv and images/: $VELM_FLICKR8K, else shared/data/flickr8k beside the repository.

    Raises:
        FileNotFoundError: there is none.
    """
    given = os.environ.get(VARIABLE)
    folder = Path(given) if given else ROOT.parent / "shared" / "data" / "flickr8k"
    if not (folder / "captions.csv").is_file():
        raise FileNotFoundError(
            f"There is no {folder / 'captions.csv'}, the photographs of this benchmark. Set {VARIABLE} to a folder "
            f"with captions.csv (image_path,text,split,image_id) and its images."
        )
    return folder


def write_rows(source: Path, target: Path, rows: int) -> list[tuple[str, str]]:
    """Write the first training rows as a CSV that both sides read, with absolute paths.

    Args:
        source: folder with captions.csv.
        target: the file to write: image_path, text, split, image_id.
        rows: number of captions.

    Returns:
        path and caption of each row.

    Raises:
        ValueError: there are fewer rows.
    """
    written = []
    with open(source / "captions.csv", newline="", encoding="utf-8") as read:
        for row in csv.DictReader(read):
            if row["split"] == "train" and len(written) < rows:
                written.append((str((source / row["image_path"]).resolve()), row["text"], row["image_id"]))
    if len(written) < rows:
        raise ValueError(f"{source / 'captions.csv'} has {len(written)} training rows, and {rows} are asked for.")
    with open(target, "w", newline="", encoding="utf-8") as write:
        table = csv.writer(write)
        table.writerow(["image_path", "text", "split", "image_id"])
        table.writerows((path, text, "train", identity) for path, text, identity in written)
    return [(path, text) for path, text, _ in written]


def write_tokenizer(folder: Path) -> None:
    """Write CLIP's byte-pair encoding, from the file in open_clip, in the format of `transformers`.

    The ids are CLIP's. CLIP has no separate ids for padding and unknown; they get those of the rarest merges, so that
    the vocabulary stays at 49,408.
    """
    from open_clip.tokenizer import SimpleTokenizer, default_bpe
    from transformers import CLIPTokenizerFast

    ids = SimpleTokenizer().encoder
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as read:
        lines = read.read().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    tokens = list(ids)
    tokenizer = CLIPTokenizerFast(
        vocab=ids, merges=merges, bos_token=tokens[-2], eos_token=tokens[-1], pad_token=tokens[PAD],
        unk_token=tokens[UNKNOWN],
    )  # fmt: skip
    tokenizer.save_pretrained(str(folder))
