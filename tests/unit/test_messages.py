"""Every message has a short name, and the terminal says it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from genworker import messages
from genworker.errors import Fault, UsageError
from support.project import Project

SOURCE = Path(messages.__file__).parent
RAISED = re.compile(r"(?:Catalog)?Fault|(?!Tr)\w+Error|_?fault")
NOT_FOR_USERS = {
    "AssertionError", "AttributeError", "ImportError", "InterruptedError", "KeyError", "LookupError", "OSError",
    "TypeError", "ValueError", "BadLogError", "OddEventError", "BodyTooLargeError", "MalformedAnswerError",
    "ProviderUnavailableError", "RateLimitedError", "RequestRejectedError", "SecurityError", "RuntimeError",
    "TimeoutError", "PermissionError", "UnicodeDecodeError", "JSONDecodeError",
}  # fmt: skip
"""Mistakes of a program, what is caught and said in other words, and what an endpoint says, in its own."""


def _words(node: ast.expr) -> str:
    """A text of the source, with X for what is filled in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_words(part) for part in parts)
        case ast.BinOp(left=left, right=right):
            return _words(left) + _words(right)
        case _:
            return "X"


def _said() -> Iterator[tuple[str, str]]:
    """(place, text) of every message that is written down where an error is made."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if RAISED.fullmatch(name) is None or name in NOT_FOR_USERS:
                continue
            # A reader's own `fault` has the place first: the line, and the column as a word.
            given = [_words(one) for one in node.args]
            texts = [text for text in given if not text.isidentifier()][:1]
            for text in texts:
                if re.search(r"[a-z]", text.replace("X", "")):
                    yield f"{path.relative_to(SOURCE)}:{node.lineno}", text


def test_the_source_has_many_messages() -> None:
    assert len(list(_said())) > 200, "the search finds them no more"


def test_every_message_has_a_short_name() -> None:
    nameless = [f"{place}: {text}" for place, text in _said() if messages.find(text) is None]
    assert nameless == [], "give them an entry, or words of one, in genworker/messages.py"


def test_names_are_plain_and_each_stands_once() -> None:
    names = [message.name for message in messages.MESSAGES]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)
    assert all(message.means.endswith(".") and message.mends for message in messages.MESSAGES)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("OPENROUTER_API_KEY is not set", "key-not-set"),
        ("combo combo_v1_abc is registered nowhere, and no set of the concepts has this id", "combo"),
        ("unknown setting 'modle'", "unknown-setting"),
        ("unknown essay template 'x'", "unknown-name"),
        ("unknown stage 'drafts'", "csv-value"),
        ("HTTP 402: budget_exceeded", "http-402"),
        ("HTTP 401: no such key", "http-401"),
        ("no score in the last 3 lines; the last line is 'well'", "unparseable"),
        ("another worker is running cohort x (pid 4)", "locked"),
        ("data/gens/draft/a/raw.txt cannot be read: Permission denied", "cannot-read"),
        ("draft abc cannot be committed: No space left on device", "not-committed"),
        (
            "the parent 'x' is of stage draft; the parent of a row of stage evaluation is of stage essay",
            "parent",
        ),
        ("key-not-set", "key-not-set"),
        ("something that no program says", None),
    ],
)
def test_a_message_is_found_by_its_words(text: str, name: str | None) -> None:
    found = messages.find(text)
    assert (found.name if found else None) == name


def test_a_file_of_many_faults_names_few() -> None:
    whats = [
        "there is no catalogue",
        "X is not set",
        "there is no catalogue",
        "not valid TOML: x",
        "unknown key 'a'",
    ]
    error = UsageError([Fault(what) for what in whats])
    assert messages.names_of(error) == ["no-catalogue", "key-not-set", "not-toml"]


def test_an_error_names_its_explanation_and_it_is_there(tmp_path: Path) -> None:
    project = Project(tmp_path)
    failed = project.run("plan", "nowhere")
    assert failed.returncode == 2
    name = re.search(r"^  help:  genworker explain (\S+)$", failed.stderr, re.MULTILINE)
    assert name is not None, failed.stderr
    told = project.run("explain", name[1])
    assert told.returncode == 0
    assert told.stdout.startswith(f"{name[1]} (")
    listed = project.run("explain").stdout
    assert all(f"{message.name} " in listed for message in messages.MESSAGES)
    unknown = project.run("explain", "something", "else\x1b[31m")
    assert unknown.returncode == 2
    assert "no message has these words: something else" in unknown.stderr
    assert "\x1b" not in unknown.stderr
