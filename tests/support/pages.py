"""Reads pages as a strict reader does: what would run, what would be fetched, and what a person sees."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

INLINE = {"a", "b", "bdi", "code", "mark", "span"}
VOID = {"meta", "br", "rect", "circle", "line", "link", "img", "input"}


class Page(HTMLParser):
    """One page.

    Attributes:
        tags: every tag's name, as often as it stands.
        links: every ``href``.
        ids: every ``id``.
        faults: what a page must not have: handlers, inline styles, foreign addresses, unclosed tags.
        text: what is read, without the style sheet.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.faults: list[str] = []
        self.policy = ""
        self.style = ""
        self.classes: list[str] = []
        self._open: list[str] = []
        self._texts: list[str] = []
        self.feed(self.source)
        self.close()
        if self._open:
            self.faults.append(f"not closed: {self._open}")
        self.text = "".join(self._texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in INLINE:
            self._texts.append(" ")
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            text = value or ""
            if name.startswith("on") or name in ("style", "src", "srcset", "action", "formaction", "data"):
                self.faults.append(f"<{tag} {name}={text!r}>")
            if name == "href":
                self.links.append(text)
                if not re.fullmatch(r"#[\w-]+|(?:\.\./|pages/)?[\w.-]+\.(?:html|csv)(?:#[\w-]+)?", text):
                    self.faults.append(f"a link that leads out: {text!r}")
            if name == "id":
                self.ids.append(text)
            if name == "class":
                self.classes += text.split()
        if tag in ("script", "iframe", "object", "embed", "link", "form", "base", "img", "input", "textarea"):
            self.faults.append(f"<{tag}>")
        facts = dict(attrs)
        if facts.get("http-equiv") == "Content-Security-Policy":
            self.policy = facts.get("content") or ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
        else:
            self._texts.append(data)

    def style_hash(self) -> str:
        """What the policy must allow."""
        return "sha256-" + base64.b64encode(hashlib.sha256(self.style.encode()).digest()).decode()

    def dead_links(self) -> list[str]:
        """Links to a page or a place that is not there."""
        places: dict[str, set[str] | None] = {"": set(self.ids)}
        dead = []
        for link in set(self.links):
            name, _, place = link.partition("#")
            if name not in places:
                target = self.path.parent / name
                ids = re.findall(r' id="([^"]*)"', target.read_text()) if target.is_file() else None
                places[name] = None if ids is None else set(ids)
            there = places[name]
            if there is None or (place and place not in there):
                dead.append(link)
        return dead
