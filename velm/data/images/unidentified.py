"""Image files that Pillow does not open as they are: PNG with much text, HEIC; for others, what they are instead."""

from __future__ import annotations

from functools import cache

__all__ = ["explain", "is_heic", "register_heic", "without_text"]

PNG = b"\x89PNG\r\n\x1a\n"
#: Chunks of text and colour profiles, which Pillow refuses beyond 1 MB.
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEAD = 2048  # bytes in which a page or a drawing shows what it is


def without_text(encoded: bytes) -> bytes | None:
    """A PNG without its chunks of text and its colour profile; None if it is no PNG."""
    if not encoded.startswith(PNG):
        return None
    kept, position = [PNG], len(PNG)
    while position < len(encoded):
        end = position + 12 + int.from_bytes(encoded[position : position + 4], "big")  # length, kind, content, CRC
        if encoded[position + 4 : position + 8] not in TEXT_CHUNKS:
            kept.append(encoded[position:end])
        position = end
    return b"".join(kept)


def is_heic(encoded: bytes) -> bool:
    """Whether a file states that it is HEIC or HEIF, the format of an iPhone's camera."""
    return encoded[4:8] == b"ftyp" and encoded[8:12] in HEIC


@cache
def register_heic() -> bool:
    """Make Pillow read HEIC, for this process; False if pillow-heif is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def explain(encoded: bytes) -> str:
    """What a file is that Pillow cannot identify, and what to do; '' if it is unknown."""
    head = encoded[:HEAD].lower()
    if not encoded:
        return "it is empty"
    if is_heic(encoded):
        if register_heic():
            return "it is HEIC, and pillow-heif cannot read it"
        return "it is HEIC, which Pillow reads with pillow-heif: pip install 'velm[heic]'"
    if encoded[4:12] in (b"ftypavif", b"ftypavis"):
        return "it is AVIF, which needs a newer Pillow: pip install -U pillow"
    if encoded.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "it is JPEG XL; convert it, for example with djxl image.jxl image.png"
    if encoded[4:8] == b"ftyp":
        return "it is a video; extract its frames, for example with ffmpeg"
    if b"<svg" in head:
        return "it is SVG, a drawing; render it to pixels first, for example with rsvg-convert -o image.png image.svg"
    if head.lstrip().startswith((b"<!doctype html", b"<html")):
        return "it is a web page, so its download failed; fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file with git lfs pull"
    if encoded[128:132] == b"DICM":
        return "it is DICOM; convert it to PNG of 16 bits, for example with pydicom"
    if head.startswith(b"%pdf"):
        return "it is PDF; render its pages to images first, for example with pdftoppm -png"
    return ""
