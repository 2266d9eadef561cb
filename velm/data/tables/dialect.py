"""How a table of text is written: its encoding, the delimiter, whether cells are quoted, and its header."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from velm.data.images.names import image_suffixes
from velm.data.tables.columns import matches, normalized
from velm.data.tables.encoding import OTHER_ENCODING, detect_encoding, utf8_stream
from velm.data.tables.quotes import QuoteSurvey, survey_quotes
from velm.errors import DataError

__all__ = ["Dialect", "Quoting", "detect_dialect"]

Quoting = Literal["minimal", "all", "none"]
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
HEAD = 2**20  # bytes of the file from which the delimiter is detected
LINES = 50
LONG_NAME = 5  # words; a column name has fewer
SPLIT_NAMES = {"train", "val", "test", "dev", "valid", "validation"}


@dataclass(frozen=True)
class Dialect:
    """How a table of text is written.

    Attributes:
        encoding: a codec of Python.
        delimiter: one character.
        quoted: whether quotation marks delimit cells; else they are plain characters.
        blanks: whether blanks around the delimiter belong to it.
        header: whether the first row is a header.
        names: of the columns.
        survey: of its quotation marks.
        assumed: what was detected and is not the default, in words.
    """

    encoding: str
    delimiter: str
    quoted: bool
    blanks: bool
    header: bool
    names: list[str]
    survey: QuoteSurvey
    assumed: list[str]


def detect_dialect(
    path: str,
    expected: dict[str, list[str]],
    default: str,
    *,
    delimiter: str | None = None,
    quoting: Quoting | None = None,
    encoding: str | None = None,
    header: bool | None = None,
    columns: Sequence[str] | None = None,
) -> Dialect:
    """The dialect of a file; what is not given is detected.

    Args:
        path: the file.
        expected: names, or patterns of names, of the columns in use, by their use: {'text': ['caption']}.
        default: the delimiter of the format.
        delimiter: a character, or its name: comma, semicolon, tab, pipe.
        quoting: 'none': quotation marks are plain characters; 'minimal' or 'all': they delimit cells.
        encoding: a codec of Python.
        header: whether the first row has the names of the columns.
        columns: these names, where it does not.

    Raises:
        DataError: an unknown encoding or delimiter; the file is empty; it has no header and no names are given.
    """
    assumed = []
    used = encoding or detect_encoding(path)
    if encoding is None and used != "utf-8":
        assumed.append(f"encoding: {used}")
    lines = _first_lines(path, used)
    wanted = list(columns or ()) or [name for names in expected.values() for name in names]
    chosen = _named_delimiter(delimiter) if delimiter is not None else _delimiter(lines, wanted, default, columns)
    if delimiter is None and chosen != default:
        assumed.append(f"delimiter: {DELIMITERS[chosen]}")
    with utf8_stream(path, used) as stream:
        survey = survey_quotes(stream, chosen, needed=chosen != "\t")
    quoted = _quoted(lines, chosen, survey) if quoting is None else quoting != "none"
    if quoting is None and survey.quotes and not quoted:
        assumed.append("quoting: none")
    first = next(_rows(lines, chosen, quoted))
    if header is None:
        header = _has_header(first, wanted, columns)
        if not header:
            assumed.append("header: false")
    if columns is None and not header:
        raise _no_header(path, first, expected)
    if columns is not None and len(columns) != len(first):
        raise DataError(
            f"columns has {len(columns)} names, but the first row of {path!r}, split at {chosen!r}, has {len(first)} "
            f"cells: {', '.join(repr(cell[:30]) for cell in first[:6])}{', ...' if len(first) > 6 else ''}."
        )
    names = [cell.strip() for cell in first] if columns is None else list(columns)
    return Dialect(used, chosen, quoted, _has_blanks(lines[0], chosen), header, names, survey, assumed)


def _has_blanks(line: str, delimiter: str) -> bool:
    """Whether a blank follows, or precedes, every delimiter of a line."""
    cells = line.split(delimiter)
    return len(cells) > 1 and (all(c[:1] == " " for c in cells[1:]) or all(c[-1:] == " " for c in cells[:-1]))


def _first_lines(path: str, encoding: str) -> list[str]:
    """The first lines that are not blank, with their ends."""
    head = b""
    with utf8_stream(path, encoding) as stream:
        while b"\n" not in head and (more := stream.read(HEAD)):
            head += more
    text = io.StringIO(head.decode("utf-8", "replace").removeprefix("\ufeff"), newline="")
    lines = [line for line in text if line.strip()]
    if not lines:
        raise DataError(f"Cannot read {path!r} as a table: it is empty.")
    if len(lines) > 1 and len(head) >= HEAD:
        lines.pop()  # which may have been cut
    return lines[:LINES]


def _named_delimiter(delimiter: str) -> str:
    chosen = {name: character for character, name in DELIMITERS.items()} | {"\\t": "\t"}
    character = chosen.get(delimiter, delimiter)
    if len(character) != 1 or not character.isascii() or character in '"\r\n':
        raise DataError(f"delimiter is one character, or {', '.join(DELIMITERS.values())}; got {delimiter!r}.")
    return character


def _delimiter(lines: list[str], wanted: Sequence[str], default: str, columns: Sequence[str] | None) -> str:
    """The one whose header has the most of the names in use; else the one that gives all rows the same length."""
    candidates = [default, *(each for each in DELIMITERS if each != default)]
    headers = {each: [cell.strip(' \t\r\n"') for cell in lines[0].split(each)] for each in candidates}
    found = {each: sum(any(matches(cell, name) for cell in headers[each]) for name in wanted) for each in candidates}
    if any(found.values()):
        return max(candidates, key=lambda each: found[each])
    for each in candidates:
        widths = Counter(len(row) for row in _rows(lines, each, each != "\t"))
        width, count = widths.most_common(1)[0]
        if (width == len(columns) if columns else width > 1) and 10 * count >= 9 * sum(widths.values()):
            return each
    return default


def _rows(lines: Iterable[str], delimiter: str, quoted: bool) -> Iterator[list[str]]:
    """The rows of some lines; those after a line that `csv` refuses are left out, except where it is the first."""
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True,
                        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)  # fmt: skip
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield from reader
    except csv.Error:
        yield next(iter(lines)).rstrip("\r\n").split(delimiter)
    finally:
        csv.field_size_limit(before)


def _quoted(lines: list[str], delimiter: str, survey: QuoteSurvey) -> bool:
    """Whether quotation marks delimit cells: as a rule, but in a TSV they do only where all of them can.

    Then some must hold a tab, a line break or a quotation mark, or the cells of the header be quoted.
    """
    if delimiter != "\t":
        return True
    header = all(cell.strip().startswith('"') for cell in lines[0].split(delimiter))
    return survey.well_formed and (survey.needed or header)


def _has_header(first: list[str], wanted: Sequence[str], columns: Sequence[str] | None) -> bool:
    if columns is not None:
        return [normalized(cell) for cell in first] == [normalized(name) for name in columns]
    return any(matches(cell, name) for cell in first for name in wanted) or not _is_data(first)


def _is_data(cells: Sequence[str]) -> bool:
    """Whether one of the cells is an image, a URL, a number, the name of a split or a caption."""
    return any(_is_image(cell) or _is_number(cell) or len(cell.split()) >= LONG_NAME or cell.strip() in SPLIT_NAMES
               for cell in cells)  # fmt: skip


def _is_image(cell: str) -> bool:
    ending = re.search(r"(\.\w{2,5})(#\d+)?$", cell.strip())
    return "://" in cell or (ending is not None and ending[1].lower() in image_suffixes())


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"\s*[+-]?\d+(\.\d+)?\s*", cell) is not None


def _no_header(path: str, first: list[str], expected: dict[str, list[str]]) -> DataError:
    """An error with names for the columns, to be typed."""
    name = {use: names[0] for use, names in expected.items() if "*" not in names[0]}
    names = [f"column_{number}" for number in range(1, len(first) + 1)]
    guesses = [("image", _is_image), ("split", lambda cell: cell.strip() in SPLIT_NAMES)]
    longest = max((cell for cell in first if not _is_image(cell)), key=len, default=None)
    guesses.append(("text", lambda cell: cell == longest))
    for use, fits in guesses:
        place = next((i for i, cell in enumerate(first) if names[i].startswith("column_") and fits(cell)), None)
        if place is not None and use in name:
            names[place] = name[use]
    shown = ", ".join(repr(cell[:30]) for cell in first[:4])
    replaced = f" {OTHER_ENCODING}" if any("\ufffd" in cell for cell in first) else ""
    return DataError(
        f"{path!r} has no header: its first line is data ({shown}{', ...' if len(first) > 4 else ''}). Name its "
        f"{len(first)} columns, for example columns: [{', '.join(names)}]; if the first line is a header, set "
        f"header: true.{replaced}"
    )
