"""Where the keys of a TOML text stand: the parser of the standard library does not say."""

from __future__ import annotations

import re
from collections import Counter

Path = tuple[str | int, ...]

_TABLE = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*([A-Za-z0-9_-]+|"[^"]*"|'[^']*')((?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*=""")


class TomlLines:
    """Line numbers, from 1, by the way to a key. Good enough for messages, not a second parser."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._keys: dict[Path, int] = {}
        table: Path = ()
        seen: Counter[Path] = Counter()
        for number, line in enumerate(self._lines, start=1):
            if match := _TABLE.match(line):
                table = tuple(part.strip().strip("\"'") for part in match[2].split("."))
                if match[1] == "[[":
                    seen[table] += 1
                    table = (*table, seen[table] - 1)
                self._keys.setdefault(table, number)
            elif match := _KEY.match(line):
                names = [match[1], *filter(None, (part.strip() for part in match[2].split(".")))]
                self._keys.setdefault((*table, *(name.strip("\"'") for name in names)), number)

    def of(self, *path: str | int, value: str | None = None) -> int | None:
        """The line of a key, or of the nearest table around it.

        Args:
            value: a string in the key's value, whose own line is wanted.
        """
        start = next((self._keys[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self._keys), None)
        if start is None or value is None:
            return start
        end = min((line for line in self._keys.values() if line > start), default=len(self._lines) + 1)
        quoted = (f'"{value}"', f"'{value}'")
        for number in range(start, end):
            if any(text in self._lines[number - 1] for text in quoted):
                return number
        return start
