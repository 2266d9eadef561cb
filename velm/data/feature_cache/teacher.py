"""A teacher's cached embeddings of a split's images and texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from velm.data.base import Record
from velm.data.feature_cache.store import FeatureReader
from velm.data.feature_cache.texts import TextReader
from velm.outputs import TeacherEmbeddings

__all__ = ["TeacherReader"]


class TeacherReader:
    """Reads the embeddings of samples; `open` it once the caches exist.

    Args:
        records: of the split.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.images, self.texts = FeatureReader(records), TextReader(records)
        self.scale: float | None = None
        self.is_open = False

    def open(self, images: Path, texts: Path, scale: float | None) -> None:
        """Map the files of both caches.

        Args:
            images: folder of `write_features`, without positions.
            texts: folder of `write_texts`.
            scale: the teacher's inverse temperature.

        Raises:
            OSError, ValueError: a folder is missing, damaged, or of other images or texts.
        """
        self.images.open(images, positions=False)
        self.texts.open(texts)
        self.scale, self.is_open = scale, True

    def rows(self, image_id: int, record: int, text_index: int) -> tuple[int, int]:
        """The rows of a sample's image and text.

        Args:
            image_id: the first record with the image.
            record: the record of the text.
            text_index: among the texts of the record.

        Raises:
            DataError: the teacher could not read the image.
        """
        if not self.is_open:
            raise RuntimeError(
                "A teacher's embeddings were requested before they were computed: a VisionLanguageTask with a "
                "distillation loss embeds the data when fit starts."
            )
        return int(self.images.row(image_id)), self.texts.row(record, text_index)

    def read(self, rows: Sequence[tuple[int, int]]) -> TeacherEmbeddings:
        """The embeddings of samples, by their `rows`."""
        images = self.images.read([row for row, _ in rows])
        return TeacherEmbeddings(images.pooled, self.texts.read([row for _, row in rows]), self.scale)
