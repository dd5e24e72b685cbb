"""The thinking that some models put before their answer: where it ends, and whether it ended at all.

Knows only text. An answer is hostile input: one pass over the tags, whatever they are.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TAG = re.compile(
    r"<(?P<close>/)?(?P<name>think|thinking|thought|reasoning)(?:\s[^<>]{0,200})?>", re.IGNORECASE
)
_BEFORE = re.compile("[\\s\ufeff\u200b]*")
_QUOTES = ("`", "'", '"', "“", "‘")


class Thinking(NamedTuple):
    """A model's output in two parts.

    Attributes:
        answer: what parsers and children see; the whole output where there is no thinking before it.
        thinking: what was left out, with its tags; ``None`` where there was none.
        is_open: whether the thinking was begun and never closed: then there is no answer, and the output
            counts as cut off.
    """

    answer: str
    thinking: str | None
    is_open: bool


def split_thinking(raw: str) -> Thinking:
    """Tell the thinking at the beginning of an output from the answer behind it.

    Thinking stands in ``<think>…</think>`` (also ``thinking``, ``thought``, ``reasoning``) before anything
    else; several blocks may follow each other. Where a prompt has opened the block for the model, only the
    closing tag is in the output: all before it is thinking. A tag in quotes, or a block in the middle of an
    answer, is a part of the answer.
    """
    end = 0
    while True:
        start = _BEFORE.match(raw, end)
        opening = _TAG.match(raw, start.end() if start else end)
        if opening is None or opening["close"]:
            break
        closing = _end_of_block(raw, opening)
        if closing is None:
            return Thinking("", raw, is_open=True)
        end = closing
    if end == 0:
        end = _end_of_headless(raw)
    if end == 0:
        return Thinking(raw, None, is_open=False)
    return Thinking(raw[end:].lstrip(), raw[:end], is_open=False)


def _end_of_block(raw: str, opening: re.Match[str]) -> int | None:
    """Where the block ends; ``None`` when it is not closed.

    Blocks may stand in each other. Thinking may also speak of its own opening tag: where the tags do not
    match up, the last closing one ends it.
    """
    name = opening["name"].lower()
    depth, last = 1, None
    for tag in _TAG.finditer(raw, opening.end()):
        if tag["name"].lower() != name:
            continue
        depth += -1 if tag["close"] else 1
        if tag["close"]:
            last = tag.end()
            if depth == 0:
                break
    return last


def _end_of_headless(raw: str) -> int:
    """Behind the first closing tag that nothing has opened; 0 when there is none."""
    opened: set[str] = set()
    for tag in _TAG.finditer(raw):
        name = tag["name"].lower()
        if not tag["close"]:
            opened.add(name)
        elif name not in opened and raw[max(tag.start() - 1, 0) : tag.start()] not in _QUOTES:
            return tag.end()
    return 0
