"""Runs the examples of the documentation, page by page, and compares what they print.

A page is a list of fenced blocks. Each page is played from top to bottom in a directory of its own:

- ``sh`` is run by bash, with ``genworker`` on the path. It must end with exit code 0, or with the code of a
  ``<!-- exit: 1 -->`` above it.
- ``python`` is run by the interpreter that runs genworker.
- a block with ``title="path"`` is written to that file; ``title="path" .append`` adds to it.
- ``text`` below a ``sh`` block, with ``<!-- output -->`` above it, is what the block prints. Numbers, ids, times and
  white space may differ, words may not; ``…`` alone on a line stands for any lines.
- ``toml`` without a title has to be a configuration that genworker accepts.
- ``<!-- not run: REASON -->`` above a block leaves it out; a reason is demanded.

A page says in its first lines what it begins with: ``<!-- begins with: starter -->`` is the project that `genworker
init` writes, with a fake in place of the embedded model; else it begins in an empty directory. ``<!-- continues: PAGE
-->`` begins where PAGE ended. ``<!-- not run: REASON -->`` there leaves out the whole page. A comment that begins with
the word ``setup`` alone on its line holds commands that a reader need not see.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from genworker.cli.init import starter_files

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RUN = ("sh", "python")
_FENCE = re.compile(r"^( *)(`{3,})([\w+-]*)[ ]*(.*?)\s*$")
_NOTE = re.compile(r"^\s*<!--\s*(.*?)\s*-->\s*$")


class BlockError(AssertionError):
    """An example does not do what its page says."""


@dataclass(slots=True)
class Block:
    """One fenced block.

    Attributes:
        language: the word behind the fence; empty when there is none.
        line: the line of the opening fence, from 1.
        title: the file that the block is; ``None`` when it is none.
        notes: the comments directly above it.
    """

    language: str
    text: str
    line: int
    title: str | None = None
    append: bool = False
    notes: list[str] = field(default_factory=list)

    def note(self, word: str) -> str | None:
        """What a comment ``word: value`` above the block says; the empty string for a bare ``word``."""
        for note in self.notes:
            head, _, rest = note.partition(":")
            if head.strip() == word:
                return rest.strip()
        return None


@dataclass(slots=True)
class Page:
    """A page of the documentation and its blocks, in order."""

    path: Path
    blocks: list[Block]
    notes: list[str]

    @property
    def name(self) -> str:
        """Its path below ``docs``."""
        return self.path.relative_to(DOCS).as_posix()

    def note(self, word: str) -> str | None:
        """What a comment at the top of the page says."""
        return Block("", "", 1, notes=self.notes).note(word)


def read_page(path: Path) -> Page:
    """Read the fenced blocks of a Markdown file, those within lists and admonitions too."""
    lines = path.read_text(encoding="utf-8").splitlines()
    blocks: list[Block] = []
    notes: list[str] = []
    top: list[str] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        if line.strip() == "<!-- setup":
            end = next((at for at in range(number + 1, len(lines)) if lines[at].strip() == "-->"), None)
            if end is None:
                raise BlockError(f"{path}:{number + 1}: the comment is not closed")
            blocks.append(Block("sh", "\n".join(lines[number + 1 : end]) + "\n", number + 1))
            number = end + 1
            continue
        if (note := _NOTE.match(line)) is not None:
            notes.append(note[1])
            if not blocks and number < 4:
                top.append(note[1])
            number += 1
            continue
        fence = _FENCE.match(line)
        if fence is None:
            if line.strip():
                notes = []
            number += 1
            continue
        indent, ticks, language, rest = fence.groups()
        end = next(
            (at for at in range(number + 1, len(lines)) if lines[at].strip() == ticks),
            None,
        )
        if end is None:
            raise BlockError(f"{path}:{number + 1}: the block is not closed")
        title = re.search(r'title="([^"]+)"', rest)
        body = "\n".join(text.removeprefix(indent) for text in lines[number + 1 : end]) + "\n"
        blocks.append(
            Block(language, body, number + 1, title[1] if title else None, ".append" in rest, list(notes))
        )
        notes = []
        number = end + 1
    return Page(path, blocks, top)


def pages() -> list[Page]:
    """Every page that people write; generated ones are checked by what generates them."""
    return [read_page(path) for path in sorted(DOCS.rglob("*.md"))]


def _normal(text: str) -> list[str]:
    """Lines with what may differ made equal: numbers, ids, durations, paths below a temporary directory."""
    result = []
    for line in text.splitlines():
        line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)
        line = re.sub(r"\b[0-9a-z]{16}\b", "ID", line)
        line = re.sub(r"\b20\d{6}T\d{6}Z-[0-9a-f]{8}\b", "RUN", line)
        line = re.sub(r"combo_v1_[0-9a-f]{12}", "COMBO", line)
        line = re.sub(r"[-+±]?[$]?\d[\d.,:]*( ?(?:ms|s|min|h|%|kB|MB|GB))?", "N", line)
        line = re.sub(r"(?:N ?)+", "N ", line)
        line = " ".join(line.split())
        if line:
            result.append(line)
    return result


def _matches(expected: list[str], actual: list[str]) -> bool:
    if not expected:
        return not actual
    if expected[0] == "…":
        return any(_matches(expected[1:], actual[at:]) for at in range(len(actual) + 1))
    if not actual or expected[0] != actual[0]:
        return False
    return _matches(expected[1:], actual[1:])


def _environment(directory: Path, extra: Mapping[str, str]) -> dict[str, str]:
    bin_directory = str(Path(sys.executable).parent)
    return {
        "PATH": f"{bin_directory}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(directory),
        "LANG": "C.UTF-8",
        "COLUMNS": "100",
        "NO_COLOR": "1",
        **extra,
    }


@dataclass(slots=True)
class Player:
    """Plays pages in a directory.

    Attributes:
        extra: variables of the environment, such as the address of a test server in place of a real one.
    """

    directory: Path
    extra: Mapping[str, str] = field(default_factory=dict)
    printed: str = ""

    def begin(self, page: Page) -> None:
        """Lay out what a page begins with."""
        if page.note("begins with") != "starter":
            return
        for name, content in starter_files():
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        config = self.directory / "config" / "genworker.toml"
        kept = [
            line
            for line in config.read_text(encoding="utf-8").splitlines()
            if not line.startswith(("context_tokens", "model_path"))
        ]
        config.write_text(
            "\n".join(kept).replace('kind = "local"', 'kind = "scripted"') + "\n", encoding="utf-8"
        )

    def play(self, page: Page) -> None:
        """Run every block of a page.

        Raises:
            BlockError: a block ended otherwise, or printed something else, than the page says.
        """
        for block in page.blocks:
            place = f"{page.path.relative_to(ROOT)}:{block.line}"
            reason = block.note("not run")
            if reason is not None:
                if len(reason) < 5:
                    raise BlockError(f"{place}: say why the block is not run")
                continue
            if block.title is not None:
                self._write(block, place)
            elif block.language in RUN:
                self._run(block, place)
            elif block.language == "text" and block.note("output") is not None:
                self._compare(block, place)

    def _write(self, block: Block, place: str) -> None:
        assert block.title is not None
        path = self.directory / block.title
        if not path.resolve().is_relative_to(self.directory.resolve()):
            raise BlockError(f"{place}: {block.title} lies outside the page's directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if block.append else "w", encoding="utf-8") as stream:
            stream.write(block.text)

    def _run(self, block: Block, place: str) -> None:
        command = ["bash", "-c", block.text] if block.language == "sh" else [sys.executable, "-c", block.text]
        wanted = int(block.note("exit") or 0)
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=_environment(self.directory, self.extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        self.printed = done.stdout
        if done.returncode != wanted:
            raise BlockError(f"{place}: exit code {done.returncode}, not {wanted}\n{done.stdout[-4000:]}")

    def _compare(self, block: Block, place: str) -> None:
        expected, actual = _normal(block.text), _normal(self.printed)
        if not _matches(expected, actual):
            raise BlockError(f"{place}: the output differs; it prints now:\n{self.printed}")


def untried(page: Page) -> Iterator[Block]:
    """Blocks of a page that are commands but are marked as not run."""
    return (block for block in page.blocks if block.language in RUN and block.note("not run") is not None)
