"""Text from outside, made safe and visible for a terminal, a log line or a page."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_SUSPECT = re.compile(r"[^\n\t -~]")
_KEPT = frozenset("\n\t\u200c\u200d")  # the last two join letters in scripts that need them


def visible(text: str, *, limit: int | None = None, one_line: bool = False) -> str:
    """Replace control, escape and bidirectional characters with ``⟨U+001B⟩`` and the like.

    Args:
        limit: most characters of `text` that are shown; the rest becomes an ellipsis.
        one_line: show line ends and tabs as spaces.
    """
    if limit is not None and len(text) > limit:
        text = text[: max(limit - 1, 0)] + "…"
    if one_line:
        text = text.replace("\n", " ").replace("\t", " ")
    if text.isascii() and text.isprintable():
        return text
    return _SUSPECT.sub(lambda match: _shown(match[0]), text)


@lru_cache(maxsize=4096)
def _shown(char: str) -> str:
    plain = char in _KEPT or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp", "Cn")
    return char if plain else f"⟨U+{ord(char):04X}⟩"
