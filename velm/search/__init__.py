"""Search by text and image in an index of images that follows the changes of a folder."""

from __future__ import annotations

from velm.errors import SearchError
from velm.pipeline import model_hash
from velm.search.index import Index, Match
from velm.search.updates import Updated, update

__all__ = ["Index", "Match", "SearchError", "Updated", "model_hash", "update"]
