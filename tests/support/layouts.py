"""Small made files in the layouts of well-known datasets; each maker writes into a folder, images included."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from tiny import csv_table, image_bytes, write_tar

from velm.data.shards.packing import pack

NUMBERS = range(17, 37)
SPLITS = {number: "val" if number > 34 else "train" for number in NUMBERS}


def captions(number: int) -> list[str]:
    return ["a dog runs", f"dog number {number}, brown"]


def write(path: Path, content: str | bytes | Any) -> None:
    """Text, bytes, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content if isinstance(content, str | bytes) else json.dumps(content, ensure_ascii=False)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def images(folder: Path, pattern: str = "{}.jpg", numbers: Iterable[int] = NUMBERS) -> None:
    for number in numbers:
        write(folder / pattern.format(number), image_bytes(number))


def lines(rows: Iterable[str]) -> str:
    return "".join(f"{row}\n" for row in rows)


def table(folder: Path) -> None:
    images(folder / "images")
    rows = [f"images/{n}.jpg,{captions(n)[0]},{SPLITS[n]},{n}" for n in NUMBERS]
    write(folder / "captions.csv", lines(["image_path,text,split,image_id", *rows]))


def json_lines(folder: Path) -> None:
    images(folder / "images")
    rows = [
        {"image_path": f"images/{n}.jpg", "text": ["a dog runs", "a brown dog"], "split": SPLITS[n], "image_id": n}
        for n in NUMBERS
    ]
    write(folder / "captions.jsonl", lines(map(json.dumps, rows)))


def json_array(folder: Path) -> None:
    images(folder / "images")
    rows = [{"image": f"images/{n}.jpg", "caption": "a dog runs", "image_id": f"coco_{n}"} for n in NUMBERS]
    write(folder / "train.json", rows)


def coco_content(numbers: Iterable[int], each: Callable[[int], list[str]] = captions) -> dict[str, Any]:
    return {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg"} for n in numbers],
        "annotations": [{"image_id": n, "caption": text} for n in numbers for text in each(n)],
    }


def coco(folder: Path) -> None:
    for split, numbers in (("train", range(17, 35)), ("val", range(35, 37))):
        images(folder / f"{split}2017", "{:012d}.jpg", numbers)
        write(folder / f"annotations/captions_{split}2017.json", coco_content(numbers))
    write(folder / "annotations/instances_train2017.json", {"images": [], "annotations": [{"bbox": []}]})
    write(folder / "annotations/._captions_train2017.json", b"\0\5\26\7")


def karpathy(folder: Path) -> None:
    images(folder / "train2014")
    write(
        folder / "dataset_coco.json",
        {
            "images": [
                {"filename": f"{n}.jpg", "filepath": "train2014", "split": SPLITS[n],
                 "sentences": [{"raw": text} for text in captions(n)[: n - 16]]}
                for n in NUMBERS
            ]
        },
    )  # fmt: skip


def flickr8k(folder: Path) -> None:
    images(folder / "Flicker8k_Dataset")
    rows = [f"{n}.jpg#{k}\t{text}" for n in NUMBERS for k, text in enumerate(captions(n))]
    write(folder / "Flickr8k_text/Flickr8k.token.txt", lines(rows))
    write(folder / "Flickr8k_text/Flickr8k.lemma.token.txt", lines(rows))
    for name, split in (("train", "train"), ("dev", "val")):
        write(
            folder / f"Flickr8k_text/Flickr_8k.{name}Images.txt",
            lines(f"{n}.jpg" for n in NUMBERS if SPLITS[n] == split and n != 20),
        )


def kaggle_flickr8k(folder: Path) -> None:
    images(folder / "Images")
    rows = [f"{n}.jpg,{text}" for n in NUMBERS for text in (captions(n)[0], f'"{captions(n)[1]}"')]
    write(folder / "captions.txt", lines(["image,caption", *rows]))


def kaggle_flickr30k(folder: Path) -> None:
    images(folder / "flickr30k_images/flickr30k_images")
    rows = [f"{n}.jpg| {k}| {text}" for n in NUMBERS for k, text in enumerate(captions(n))]
    rows[-1] = rows[-1].replace("| 1|", "| 1  ")  # the file lacks a separator once
    write(folder / "flickr30k_images/results.csv", lines(["image_name| comment_number| comment", *rows]))


def conversation(image: str | None, *turns: str) -> dict[str, Any]:
    speakers = ("human", "gpt") * len(turns)
    entry = {"conversations": [{"from": who, "value": turn} for who, turn in zip(speakers, turns, strict=False)]}
    return entry if image is None else {"image": image, **entry}


def llava(folder: Path) -> None:
    images(folder / "coco")
    rows = [conversation(f"coco/{n}.jpg", "<image>\nWhat runs?", "a dog", "How?", "fast") for n in NUMBERS]
    rows[0] = conversation("coco/17.jpg", "<image>\nWhat runs?", "a dog")
    write(folder / "llava_instruct.json", rows)


def chinese_clip(folder: Path) -> None:
    for name, numbers in (("train", range(17, 35)), ("valid", range(35, 37))):
        rows = [f"{n}\t{base64.b64encode(image_bytes(n)).decode()}" for n in numbers]
        write(folder / f"muge/{name}_imgs.tsv", lines(rows))
        texts = [{"text_id": n - 16, "text": "一只狗", "image_ids": [n]} for n in numbers]
        write(folder / f"muge/{name}_texts.jsonl", lines(json.dumps(text, ensure_ascii=False) for text in texts))


def folder_of_captions(folder: Path) -> None:
    for n in NUMBERS:
        images(folder / "photographs", numbers=[n])
        write(folder / f"photographs/{n}.txt", lines(captions(n)))


def folders_of_classes(folder: Path) -> None:
    for name, numbers in (("dog", range(17, 27)), ("cat", range(27, 37))):
        images(folder / "classes" / name, numbers=numbers)


def shards(folder: Path) -> None:
    for shard in range(2):
        members: dict[str, bytes | str] = {}
        for n in range(3):
            members |= {f"{n:09d}.jpg": image_bytes(n + shard), f"{n:09d}.txt": "a dog runs"}
        write_tar(folder / f"shards/{shard:05d}.tar", members)


def packed(folder: Path) -> None:
    pack(csv_table(folder), str(folder / "packed"), splits=["train"])


def parquet_table(folder: Path) -> None:
    images(folder / "images")
    rows = [
        {"image_path": f"images/{n}.jpg", "text": "a dog runs", "split": SPLITS[n], "image_id": str(n)} for n in NUMBERS
    ]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "captions.parquet")


#: The layouts of the table in docs/data.md: its first column, and what writes it.
MAKERS: dict[str, Callable[[Path], None]] = {
    "table": table,
    "JSON lines": json_lines,
    "JSON array (BLIP, LAVIS)": json_array,
    "COCO": coco,
    "COCO, one file and those of the other splits beside it": coco,
    "Karpathy's splits": karpathy,
    "Flickr8k, Flickr30k": flickr8k,
    "Kaggle's Flickr8k": kaggle_flickr8k,
    "Kaggle's Flickr30k": kaggle_flickr30k,
    "LLaVA": llava,
    "LLaVA's pretraining, answers as captions": llava,
    "Chinese-CLIP (MUGE)": chinese_clip,
    "images with captions beside them": folder_of_captions,
    "images in folders of classes": folders_of_classes,
    "shards of webdataset, img2dataset": shards,
    "shards of `velm pack`": packed,
    "Parquet": parquet_table,
}
