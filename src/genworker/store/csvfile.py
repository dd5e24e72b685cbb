"""Reads CSV files from outside: strict about bytes, exact about lines."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from genworker.errors import Fault

MAX_FIELD_CHARS = 131_072


class CsvFault(Exception):
    """The file cannot be read as CSV; `fault` says where and why."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(str(fault))


@contextmanager
def open_csv(
    path: Path, lines: list[str] | None = None
) -> Iterator[tuple[list[str], Iterator[tuple[int, list[str]]]]]:
    """Open a CSV file as (header, records of (line number from 1, cells)).

    A byte-order mark and CRLF are accepted. Errors surface while records are drawn.

    Args:
        lines: receives the lines of the text as they are drawn, for a caller who wants a record as it
            stands: they are those that were added since the record before it.

    Raises:
        CsvFault: the file is absent, empty, a directory, not UTF-8, holds NUL, or a field is too long.
    """
    where = str(path)
    if path.is_fifo() or path.is_char_device():  # to open one would wait for ever, or read without end
        raise CsvFault(Fault("this is not a file", where=where))
    position = _Position()
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            csv.field_size_limit(MAX_FIELD_CHARS)
            records = _records(stream, lines, position)
            _, header = next(records, (1, None))
            if header is None:
                raise CsvFault(Fault("the file is empty", where=where, fix="write a header line"))
            yield header, records
    except FileNotFoundError:
        raise CsvFault(Fault("the file does not exist", where=where)) from None
    except IsADirectoryError:
        raise CsvFault(Fault("this is a directory, not a file", where=where)) from None
    except UnicodeDecodeError:
        raise CsvFault(_not_utf8(path)) from None
    except csv.Error as error:
        fix = f"fields may have {MAX_FIELD_CHARS} characters" if "field larger" in str(error) else None
        raise CsvFault(
            Fault(f"not readable as CSV: {error}", where=where, line=position.line, fix=fix)
        ) from None
    except OSError as error:
        raise CsvFault(Fault(f"cannot be read: {error.strerror}", where=where)) from None


@dataclass(slots=True)
class _Position:
    """How far a file has been read: the line that was drawn last, from 1."""

    line: int = 0


def _records(
    stream: Iterable[str], lines: list[str] | None, position: _Position
) -> Iterator[tuple[int, list[str]]]:
    """Records, each with the line that it begins in: a quoted cell may run over several.

    Lines without a quote are split at their commas, in half the time that the parser of `csv` takes.
    """
    numbered = enumerate(stream, start=1)
    for line, text in numbered:
        if lines is None and '"' not in text and "\0" not in text and len(text) <= MAX_FIELD_CHARS:
            text = text.rstrip("\r\n")
            yield line, text.split(",") if text else []
        else:
            drawn = _drawn(chain([(line, text)], numbered), lines, position)
            yield line, next(csv.reader(drawn, strict=True))


def _drawn(
    numbered: Iterable[tuple[int, str]], lines: list[str] | None, position: _Position
) -> Iterator[str]:
    for position.line, text in numbered:
        if "\0" in text:
            raise csv.Error("line contains NUL")
        if lines is not None:
            lines.append(text)
        yield text


def _not_utf8(path: Path) -> Fault:
    """Where the first byte is that is not UTF-8: the reader only knows it within its buffer."""
    line = 0
    with path.open("rb") as stream:
        for line, content in enumerate(stream, start=1):
            try:
                content.decode()
            except UnicodeDecodeError as error:
                return Fault(
                    f"byte {content[error.start]:#04x} at column {error.start + 1} is not UTF-8",
                    where=str(path),
                    line=line,
                    fix="save the file as UTF-8",
                )
    return Fault("the file is not UTF-8", where=str(path), fix="save the file as UTF-8")
