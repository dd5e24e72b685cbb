"""Model output as prose: Markdown that can do nothing. Headings, lists, emphasis and code; no links, no HTML.

Links and images are left as the text that they are written with: nothing that a model wrote leads out of a
page or makes it fetch anything.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from markupsafe import Markup

from genworker.core.visible import visible

MOST_CHARS = 40_000
"""A longer text is shown raw only: to lay it out as prose would take long, whatever is in it."""
_LEADS_OUT = ["link", "image", "autolink", "html_inline", "html_block", "reference", "entity"]


@lru_cache(maxsize=1)
def _parser() -> Any:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 8}).disable(_LEADS_OUT)
    parser.core.ruler.push("headings", _as_paragraphs)
    return parser


def _as_paragraphs(state: Any) -> None:
    """A heading of a text is none of the page: it would stand in the page's outline."""
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = "p"
            if token.nesting == 1:
                token.attrSet("class", "head")


def prose(text: str) -> Markup | None:
    """A text laid out; ``None`` where it is too long for that. Control characters are made visible."""
    if len(text) > MOST_CHARS:
        return None
    return Markup(_parser().render(visible(text)))
