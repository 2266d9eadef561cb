"""Finds the columns of a table by the names that a config gives them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from velm.errors import DataError
from velm.util import did_you_mean

__all__ = ["find_column", "find_text_columns", "matches", "normalized"]


MOST, LONGEST = 30, 60  # columns that a message lists, characters of their names


def normalized(name: str) -> str:
    """Equal for names that differ in case or surrounding blanks."""
    return name.strip().casefold()


def matches(name: str, wanted: str) -> bool:
    """Whether a column may be meant by a name, or by a pattern with `*`."""
    return fnmatchcase(normalized(name), normalized(wanted)) or normalized(name) == normalized(wanted)


def find_column(file: str, option: str, wanted: str, present: Sequence[str]) -> str:
    """The name in the file of the column that an option names: equal, or else equal but for blanks and case.

    Raises:
        DataError: there is none, or there are several.
    """
    for same in (str, str.strip, normalized):
        found = [name for name in present if same(name) == same(wanted)]
        if len(found) == 1:
            return found[0]
        if found:
            listed = f"{len(found)} columns {wanted!r}" if len(set(found)) == 1 else f"the columns {_listed(found)}"
            raise DataError(f"{file!r} has {listed}: rename one in the file, {option} may mean either.")
    absent = "" if option == "text_column" else f", or {option} to null if there is none"
    raise DataError(
        f"{file!r} has no column {wanted!r}.{did_you_mean(wanted, present)} "
        f"Its columns: {_shown(present)}. Set {option} to the right one{absent}."
    )


def find_text_columns(file: str, wanted: str | Sequence[str], present: Sequence[str]) -> list[str]:
    """The columns of captions, for a name, a pattern such as 'caption_*', or a list of them.

    Raises:
        DataError: one is not there.
    """
    found: dict[str, None] = {}
    for name in [wanted] if isinstance(wanted, str) else wanted:
        some = [each for each in present if matches(each, name)] if "*" in name and name not in present else []
        found |= dict.fromkeys(some or [find_column(file, "text_column", name, present)])
    for name in found:
        find_column(file, "text_column", name, present)  # a pattern may meet two columns of one name
    return list(found)


def _shown(names: Sequence[str]) -> str:
    """The names, cut where they are long or many: a file of another layout may have megabytes in its first line."""
    cut = [name if len(name) <= LONGEST else f"{name[:LONGEST]}..." for name in names[:MOST]]
    return ", ".join(cut) + (f", ... ({len(names)} in all)" if len(names) > MOST else "")


def _listed(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))
