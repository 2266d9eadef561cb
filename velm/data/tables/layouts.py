"""Recognises the layouts of well-known datasets in files that were given to another reader."""

from __future__ import annotations

import os
import re
import shlex

import pyarrow as pa

__all__ = ["suggest_layout"]

HEAD = 2**16  # bytes that are looked at
COCO = rb'^\s*\{[\s\S]*("annotations"\s*:\s*\[|"images"\s*:\s*\[\s*\{[^}]*"file_name")'
#: Name of the reader, what the layout is called, and a pattern of the beginning of its files, the first that fits wins.
LAYOUTS = (
    ("karpathy", "one of Karpathy's files", rb'^\s*\{[\s\S]*"(sentids|sentences)"\s*:'),
    ("chinese_clip", "the texts of Chinese-CLIP", rb'^\s*\{(?=[^\n]*"image_ids")[^\n]*"text_id"'),
    ("chinese_clip", "the images of Chinese-CLIP in base64", rb"^[^\t\n]+\t[A-Za-z0-9+/_-]{100,}"),
    ("llava", "conversations as LLaVA has them", rb'"(conversations|messages)"\s*:\s*\['),
    ("coco", "COCO's own layout, images and annotations apart", COCO),
    ("json", "an array of JSON objects", rb"^\s*\[\s*\{"),
    ("flickr8k", "the captions of Flickr8k, without a header line", rb"^[^\t\n]+\.\w+#\d+\t"),
    ("flickr8k", "Kaggle's Flickr8k", rb"^image,caption\r?\n"),
    ("flickr30k", "Kaggle's Flickr30k", rb"^image_name\s*\|\s*comment_number\s*\|\s*comment"),
)
URLS = re.compile(rb"^[^\t\n]+\t(https?://\S+)\r?\n")


def suggest_layout(path: str, root: str | None = None, name: str = "") -> str:
    """The sentence that names the reader of a file, and what to type; '' where the layout is not known.

    Args:
        path: the file; `.gz` is decompressed.
        root: the folder of the images that was given, to be repeated.
        name: the reader that was given, which is not suggested.
    """
    if os.path.isdir(path):
        return ""
    with pa.input_stream(path, compression="detect") as stream:
        head = stream.read(HEAD).removeprefix(b"\xef\xbb\xbf")
    if URLS.match(head):
        file = shlex.quote(path)
        return (
            f"{path!r} has captions and URLs and no header line, as Conceptual Captions, and VELM reads files: name "
            f"its columns with sed -i '1i caption\\turl' {file}, then download the images with img2dataset --url_list "
            f"{file} --input_format tsv --url_col url --caption_col caption --output_format webdataset "
            f"--output_folder images, and set dataset: {{name: webdataset, train: 'images/{{00000..00000}}.tar'}}."
        )
    for reader, layout, pattern in LAYOUTS:
        if not name.startswith(reader) and re.search(pattern, head):
            folder = "" if root is None else f", root: {root}"
            return f"{path!r} looks like {layout}: set dataset: {{name: {reader}, path: {path}{folder}}}."
    return ""
