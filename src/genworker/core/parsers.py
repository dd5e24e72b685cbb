"""Parsers: a model's answer -> the text that downstream stages and reports consume.

Owns the names of the parsers, the places where a score may stand and the form in which it is stored.
Knows neither files nor providers. An answer is hostile input: each parser here takes time about linear
in it, returns text or raises `ParseFailedError`, and reads a number only where the contract says that
a score stands. A number that is there but cannot be read without guessing is a failure, not a guess.
Thinking before an answer is no part of it (`genworker.core.thinking`).
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from genworker.core.stages import STAGES, Stage
from genworker.core.thinking import split_thinking
from genworker.errors import ParseFailedError

Parser = Callable[[str], str]
"""Raw text with ``\\n`` line ends -> parsed text; raises `ParseFailedError` and says why."""

MAX_PATTERN_CHARS = 500
"""Longest pattern behind ``regex:``."""

_REGEX_PREFIX = "regex:"
_JSON_PREFIX = "json:"
_LINE_CHARS = 2000
_REGEX_LINE_CHARS = 400
_TAIL_LINES = 200
_COMPLEX_LINES = 30
_EXCERPT_CHARS = 80


def format_score(score: Decimal | float) -> str:
    """A score as ``parsed.txt`` holds it: no exponent, one to four decimals (``7.0``, ``7.25``).

    Raises:
        ValueError: the score is not a finite number from 0 to 10.
    """
    if not math.isfinite(score) or not 0 <= score <= 10:
        raise ValueError(f"{score} is not a score from 0 to 10")
    whole, _, decimals = f"{abs(score):.4f}".partition(".")  # abs: minus zero is zero
    return f"{whole}.{decimals.rstrip('0') or '0'}"


def read_score(parsed_text: str) -> float | None:
    """The score in an evaluation's parsed text; ``None`` when that is no plain decimal from 0 to 10."""
    text = parsed_text.strip()
    if not re.fullmatch(_NUMBER, text):
        return None
    score = float(text)
    return score if score <= 10 else None


def _excerpt(text: str) -> str:
    """At most 80 characters of `text` in quotes; what a terminal would obey or not show is escaped."""
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text[:_EXCERPT_CHARS]
    )
    return f"'{shown[:_EXCERPT_CHARS]}{'…' if max(len(text), len(shown)) > _EXCERPT_CHARS else ''}'"


def _require_text(text: str) -> None:
    if not text or text.isspace():
        raise ParseFailedError("the answer is empty")


# --- drafts and essays ---

_ESSAY_OPEN = re.compile(r"<essay\s*>", re.IGNORECASE)
_ESSAY_CLOSE = re.compile(r"</essay\s*>", re.IGNORECASE)
_IDEA_TAG = re.compile(
    r"^[ \t]*<essay-idea(?P<attributes>\s[^<>\n]*)?>|(?P<close></essay-idea\s*>)[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_IDEA_STAGE = re.compile(r"""\sstage\s*=\s*["']?([0-9]{1,9})(?![0-9])""", re.IGNORECASE)


def _identity(text: str) -> str:
    _require_text(text)
    return text


def _essay_block(text: str) -> str:
    _require_text(text)
    opening = _ESSAY_OPEN.search(text)
    if opening is None:
        raise ParseFailedError(f"no <essay> tag in the answer, which begins {_excerpt(text.lstrip())}")
    closing = _ESSAY_CLOSE.search(text, opening.end())
    block = text[opening.end() : closing.start() if closing else len(text)].strip()
    if not block:
        raise ParseFailedError("the first <essay> block is empty")
    return block


def _essay_block_lenient(text: str) -> str:
    """The block where there is one; an answer without tags is the essay itself."""
    return _essay_block(text) if _ESSAY_OPEN.search(text) else _identity(text)


def _essay_idea_last(text: str) -> str:
    _require_text(text)
    ideas: list[tuple[int, str | None]] = []  # stage (-1: none), and the text once the block is closed
    start = 0
    for tag in _IDEA_TAG.finditer(text):
        if tag["close"] is None:
            stage = _IDEA_STAGE.search(tag["attributes"] or "")
            ideas.append((int(stage[1]) if stage else -1, None))
            start = tag.end()
        elif ideas and ideas[-1][1] is None:
            ideas[-1] = (ideas[-1][0], text[start : tag.start()].strip())
    if not ideas:
        where = _excerpt(text.lstrip())
        raise ParseFailedError(f"no <essay-idea> block on its own lines in the answer, which begins {where}")
    number, idea = max(reversed(ideas), key=lambda block: block[0])
    if not idea:
        # Not the idea before it: an earlier stage in place of one that was cut off would be wrong
        # without a word.
        name = "the last <essay-idea> block" if number < 0 else f'the <essay-idea stage="{number}"> block'
        raise ParseFailedError(f"{name} is {'empty' if idea is not None else 'not closed'}")
    return idea


# --- evaluations: where a score may stand ---

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"

_STRUCK_OUT = re.compile(r"~~[^~]*~~")
_MARK = r"""[*`"“”'‘’\\\[\]\u200b-\u200d\u2060\ufeff]"""
_MARK_BETWEEN_DIGITS = re.compile(rf"(?<=[0-9]){_MARK}+(?=[0-9])")
_MARKS = re.compile(rf"{_MARK}+|(?<![^\W_])_+|_+(?![^\W_])")
_LINE_MARKS = re.compile(r"^(?:[-=\s]+$|[\s>#]*(?:[-+•]\s+)?)")

# The word, not a part of another ("sub-score", "z-score", "scores"). `note` is "(0–10)" and the like.
# Behind a `sep` stands the score; behind "is", a dash, a table's bar or nothing may as well stand prose.
_LABEL = re.compile(
    r"(?<![^\W_])(?<!\w[-‑])(?<!sub[ _])score(?!\w)(?:\s*\((?P<note>[^()]{0,60})\))?"
    r"(?:\s*(?P<sep>[:：=])|\s+(?:[-–—→|]|is)\s|)\s*",
    re.IGNORECASE,
)
_EXPLICIT_LABEL = re.compile(r"SCORE\s*(?:\([^()]{0,60}\)\s*)?[:：]\s*")
# Of "4 + 3 = 7/10" the result counts. What follows must not make the number a part of something else:
# of a word, a range ("0-10"), a list, a sum, a percentage, of a longer number in digits that are not
# ASCII, or of a line that was cut ("…").
_TERM = r"[0-9.]+(?:\s*\([^()]{0,40}\))?"
_SCORE = re.compile(
    rf"(?:{_TERM}(?:\s*[-+–−×x*/÷]\s*{_TERM}){{1,9}}\s*=\s*|[-+–−×x*/÷=().0-9\s]{{1,80}}=\s*)?"
    rf"(?P<sign>[-–−])?\+?\s*(?P<number>{_NUMBER})"
    rf"(?:(?:\s*(?:points?|pts))?\s*\(?(?:/|⁄|(?:out\s+)?of)\s*(?P<of>{_NUMBER}))?"
    r"(?!\w|…|\s*[%/⁄]|\.\d|\s*(?:[-–−+×x*÷=:,;|&]|and|or|to|of)?\s*[\d¼-¾⅐-⅞]"
    r"|\s*\([^()]{0,40}\)\s*[+×*÷=]\s*\d)",
    re.IGNORECASE,
)
_NO_NUMBER = re.compile(r"[-+]?(?:nan|inf|infinity)\W*", re.IGNORECASE)
_NOTHING_ELSE = re.compile(r"[.!]?(?:\s*\(.*|\s*\|)?")
# Behind an explicit score: a remark in parentheses (which may be cut off), or one behind a dash.
_REMARK = re.compile(r"[.!]?\s*(?:\||\((?:[^()]|\([^()]*\))*\)[.!]?|\([^()]*|[-–—]+\s.*)?\s*")
# "456", "4,5,6" and "4 5 6" are three sub-scores; "100" is not.
_SUB_SCORES = re.compile(
    r"(?!100(?![0-9]))([0-9])(?:\s*,\s*([0-9])\s*,\s*|\s+([0-9])\s+|([0-9]))([0-9])(?![\w.,/⁄%]|\s*[\d/⁄%])"
)
_PLAIN_NOTES = {"0", "1", "9", "10"}
"""Ends of the scales whose plain numbers are kept as they stand; "SCORE (of 5): 4" would need a rescale."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The text at a point where a score is expected.

    Attributes:
        text: the place, for messages.
        number: as it stands; ``None`` when it cannot be read without guessing.
        out_of: the denominator of a fraction; 0 or NaN only where `number` is ``None``.
        is_explicit: the line is ``SCORE: X`` and a remark at most; such a line is what a template asks for.
        sub_scores: the three digits, where three sub-scores stand in place of a number; `number` has
            what they are as one number, where that can be.
    """

    text: str
    number: Decimal | None
    out_of: Decimal | None
    is_explicit: bool = False
    sub_scores: str | None = None


def _tail(text: str, count: int, line_chars: int = _LINE_CHARS) -> list[str]:
    """The last `count` lines before trailing white space; a long one is cut to its two ends around ``…``."""
    half = line_chars // 2
    lines = text.rstrip().rsplit("\n", count)[-count:]
    return [line if len(line) <= line_chars else f"{line[:half]}…{line[-half:]}" for line in lines]


def _without_marks(line: str) -> str:
    """`line` without Markdown marks, struck-out words, quotes and zero-width characters."""
    line = _MARK_BETWEEN_DIGITS.sub("×", _STRUCK_OUT.sub("", line))  # "7**8" must not become 78
    return _LINE_MARKS.sub("", " ".join(_MARKS.sub("", line).split()))


def _scores_in(line: str, below: str = "") -> Iterator[_Found]:
    """Everything in the lines that looks like a score, from the first line to the last.

    Args:
        line: a line without marks.
        below: the next line with text, where the score of a heading stands.
    """
    for label in _LABEL.finditer(line):
        place, is_certain = line[label.end() :], label["sep"] is not None
        if not place:
            place, is_certain = below, False
        notes = set(re.findall("[0-9]+", label["note"] or ""))
        score = _SCORE.match(place)
        explicit_label = _EXPLICIT_LABEL.fullmatch(line, 0, label.end()) if notes <= _PLAIN_NOTES else None
        if (three := _SUB_SCORES.match(place)) and is_certain:
            number = Decimal(three[0]) if three[0].isdecimal() else None
            is_explicit = explicit_label is not None and _REMARK.fullmatch(place, three.end()) is not None
            digits = "".join(filter(None, three.groups()))
            yield _Found(three[0], number, None, is_explicit, digits)
            continue
        if score and not place[score.end() : score.end() + 1].isprintable():
            score = None  # "1", an invisible character, "0"
        is_alone = score is not None and _NOTHING_ELSE.fullmatch(place, score.end()) is not None
        if score and (score["of"] or (notes <= _PLAIN_NOTES and (is_certain or is_alone))):
            number = Decimal(score["number"]).copy_sign(-1 if score["sign"] else 1)
            out_of = Decimal(score["of"]) if score["of"] else None
            is_explicit = (
                explicit_label is not None
                and out_of in (None, 10)
                and _REMARK.fullmatch(place, score.end()) is not None
            )
            yield _Found(score[0], number if out_of != 0 else None, out_of, is_explicit)
        elif _is_numeric(word := place.partition(" ")[0]) and (is_certain or word == place):
            yield _Found(place, None, Decimal("NaN") if "/" in word else None)


def _is_numeric(word: str) -> bool:
    return any(char.isnumeric() for char in word) or _NO_NUMBER.fullmatch(word) is not None


def _score_text(number: Decimal | None, place: str) -> str:
    if number is None:
        raise ParseFailedError(f"what stands as the score cannot be read as one number: {_excerpt(place)}")
    if not 0 <= number <= 10:
        raise ParseFailedError(f"the score is out of range, which is 0 to 10: {_excerpt(place)}")
    return format_score(number)


def _no_score(where: str, text: str) -> ParseFailedError:
    return ParseFailedError(f"no score in the last {where}; the last line is {_excerpt(_tail(text, 1)[0])}")


def _in_last_line(text: str) -> str:
    _require_text(text)
    lines = [line for line in map(_without_marks, _tail(text, _TAIL_LINES)) if line][-3:]
    found = [score for line in lines for score in _scores_in(line)]
    if not found:
        raise _no_score("three non-empty lines", text)
    last = ([score for score in found if score.is_explicit] or found)[-1]
    if last.sub_scores is not None:
        return format_score(Decimal(sum(map(int, last.sub_scores))) / 3)
    # 8/9 is 8 here, as "SCORE: 8" is under a template that asks for 0 to 9; 4/5 would need a rescale.
    if last.number is not None and last.out_of not in (None, 9, 10):
        raise ParseFailedError(f"the score is a fraction of neither 10 nor 9: {_excerpt(last.text)}")
    return _score_text(last.number, last.text)


def _complex(text: str) -> str:
    _require_text(text)
    lines = [line for line in map(_without_marks, _tail(text, _COMPLEX_LINES)) if line]
    pairs = zip(lines, [*lines[1:], ""], strict=False)
    placed = [(line, score) for line, below in pairs for score in _scores_in(line, below)]
    if not placed:
        raise _no_score(f"{_COMPLEX_LINES} lines", text)
    found = [score for _, score in placed]
    explicit = [score for score in found if score.is_explicit]
    last = (explicit or [score for score in found if score.out_of is not None] or found)[-1]
    if explicit:
        last = _before_rounding(placed[: found.index(last)], last) or last
    if last.number is not None and last.out_of is not None:
        return _score_text(last.number * 10 / last.out_of, last.text)
    return _score_text(last.number, last.text)


def _before_rounding(earlier: Sequence[tuple[str, _Found]], explicit: _Found) -> _Found | None:
    """The exact score of which an explicit line is the rounding, where the answer says that itself.

    "Total Score: 6.5/10 → rounded to 7/10", then "SCORE: 7": templates that ask for whole numbers get this
    from judges who have added up halves, and the sum is what they found.
    """
    for line, score in reversed(earlier):
        if score.out_of == 10 and score.number is not None and explicit.number is not None:
            is_near = abs(score.number - explicit.number) <= Decimal("0.5")
            return score if is_near and "round" in line.lower() else None
    return None


def _score_identity(text: str) -> str:
    _require_text(text)
    return text.strip()


# --- evaluations: `regex:<pattern>` ---

_LONG_RUN = re.compile(r"\d{21,}|\s{21,}")
_ATOM = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_WIDE_ATOM = re.compile(r"\\[DSWw]|\[\^|\[.*\\[DSWw]", re.DOTALL)
_COSTLY = re.compile(r"\)\s*[*+{]|\.[*+{].*\.[*+{]|^(?:\(\?[a-zA-Z]+\)|\(\?:|\()*\.[*+{]", re.DOTALL)


def _regex_parser(pattern: str) -> Parser:
    r"""The parser behind ``regex:<pattern>``: the last match's first group, or all of it, is the score.

    The pattern sees the last 200 lines, one at a time and with their Markdown marks, each cut to its
    first and last 200 characters and with ``…`` in place of more than 20 digits or spaces in a row.
    Python cannot stop a match that backtracks, so its cost is bounded beforehand: by these cuts, and by
    refusing what makes it explode (a repeated group; more than one repeat of ``.``, ``[^…]``, ``\w`` and
    the like, or one at the beginning). A usual pattern then takes seconds at worst, on an answer made
    for it; a pattern made to be slow still can be.

    Raises:
        LookupError: the pattern is empty, too long, no regular expression or too costly.
    """
    if not pattern or len(pattern) > MAX_PATTERN_CHARS:
        raise LookupError(
            f"a pattern behind 'regex:' has 1 to {MAX_PATTERN_CHARS} characters, this one {len(pattern)}"
        )
    if _COSTLY.search(_ATOM.sub(lambda atom: "." if _WIDE_ATOM.match(atom[0]) else "a", pattern)):
        raise LookupError(
            f"the pattern {_excerpt(pattern)} could take for ever on a hostile answer: it repeats a group, "
            "begins with a repeat of a wide class (such as .* or [^:]+), or holds more than one"
        )
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise LookupError(f"the pattern {_excerpt(pattern)} is not a regular expression: {error}") from error

    def parse(text: str) -> str:
        _require_text(text)
        group = 1 if compiled.groups else 0
        for long_line in reversed(_tail(text, _TAIL_LINES, _REGEX_LINE_CHARS)):
            line = _LONG_RUN.sub("…", long_line)
            for last in deque(compiled.finditer(line), maxlen=1):
                shown = last[group] or ""
                is_cut = "…" in line[max(last.start(group) - 1, 0) : last.end(group) + 2]
                is_number = re.fullmatch(f"[-+]?{_NUMBER}", shown) is not None
                return _score_text(Decimal(shown) if is_number and not is_cut else None, shown)
        raise ParseFailedError(f"nothing in the last {_TAIL_LINES} lines matches {_excerpt(pattern)}")

    return parse


# --- evaluations: `json:<path>` ---

_JSON_TRIES = 20
_SCORE_STRING = re.compile(rf"\s*({_NUMBER})(?:\s*/\s*10)?\s*")


def _json_parser(path: str) -> Parser:
    """The parser behind ``json:<path>``: the number at that path of the JSON in the answer is the score.

    A path is keys and list indices joined by dots (``verdict.scores.0``), a leading ``$.`` allowed. The
    JSON is the answer itself, or stands in it: of several the last that has the path counts.

    Raises:
        LookupError: the path is empty.
    """
    steps = path.removeprefix("$").strip(".").split(".")
    if not all(steps):
        raise LookupError(
            f"a path behind 'json:' is keys joined by dots, such as json:score, not {_excerpt(path)}"
        )

    def parse(text: str) -> str:
        _require_text(text)
        seen = False
        for piece in _json_pieces(text):
            try:
                value: Any = json.loads(
                    piece, parse_int=Decimal, parse_float=Decimal, parse_constant=_no_constant
                )
                seen = seen or isinstance(value, dict | list)
                for step in steps:
                    value = value[int(step)] if isinstance(value, list) else value[step]
            except (ValueError, LookupError, TypeError, RecursionError):
                continue
            shown = value if isinstance(value, str) else str(value)
            number = value if isinstance(value, Decimal) else None
            if isinstance(value, str) and (match := _SCORE_STRING.fullmatch(value)):
                number = Decimal(match[1])
            return _score_text(number, shown)
        what = f"the JSON in the answer has no {_excerpt(path)}" if seen else "no JSON in the answer"
        raise ParseFailedError(f"{what}; the last line is {_excerpt(_tail(text, 1)[0])}")

    return parse


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _fenced(text: str) -> deque[str]:
    """The last fenced blocks of a text, each without its fences."""
    blocks: deque[str] = deque(maxlen=_JSON_TRIES)
    block: list[str] | None = None
    for line in text.split("\n"):
        if not line.lstrip().startswith("```"):
            if block is not None:
                block.append(line)
        elif block is None:
            block = []
        else:
            blocks.append("\n".join(block))
            block = None
    return blocks


def _json_pieces(text: str) -> Iterator[str]:
    """What may be the JSON: all of the text, its fenced blocks from the last, what begins with a brace.

    Few enough that an answer of nothing but braces takes no longer than another.
    """
    yield text
    yield from reversed(_fenced(text))
    end = text.rfind("}") + 1
    starts = deque((match.start() for match in re.finditer(r"^[ \t]*\{", text, re.MULTILINE)), _JSON_TRIES)
    for start in (*reversed(starts), text.find("{")):
        if 0 <= start < end:
            yield text[start:end]


# --- which of two texts is better ---

CHOICE_PARSER = "choice"
"""The parser of evaluations that compare two texts; a template that names it is such a one."""
FIRST, SECOND, TIE = "first", "second", "tie"
"""What a choice comes to: the text that stood first in the prompt, the other one, or neither."""
_CHOICES = {"A": FIRST, "B": SECOND, TIE: TIE}
_SIDE = (
    r"(?:(?:the\s+)?(?:response|essay|text|option|answer|version|candidate)\s+)?"
    r"(?P<side>[AB]|tie|tied|draw|equal|even|neither|both)"
)
_CHOICE_LINE = re.compile(
    r"(?:(?:final|overall|my|the)\s+)*"
    r"(?:winner|better(?:\s+(?:response|essay|text))?|choice|verdict|decision|preference|preferred|answer)"
    rf"\s*(?:is\b|[:=])\s*\W{{0,3}}{_SIDE}(?:\s+is\s+better|\s+wins)?\W{{0,3}}(?:\s*[(–—-].*)?",
    re.IGNORECASE,
)
_CHOICE_BRACKETS = re.compile(r"\[\[\s*(?P<side>A|B|C|tie)\s*\]\]", re.IGNORECASE)
_CHOICE_ALONE = re.compile(rf"\W{{0,3}}{_SIDE}(?:\s+is\s+better|\s+wins)?\W{{0,3}}", re.IGNORECASE)


def read_choice(parsed_text: str) -> str | None:
    """`FIRST`, `SECOND` or `TIE`, out of a comparison's parsed text; ``None`` when that is no choice."""
    return _CHOICES.get(parsed_text.strip())


def _choice(text: str) -> str:
    """The last line that says it in so many words; else the last ``[[A]]``; else a bare last line."""
    _require_text(text)
    tail = _tail(text, _COMPLEX_LINES)
    lines = [line for line in map(_without_marks, tail) if line]
    said = [match["side"] for line in lines if (match := _CHOICE_LINE.fullmatch(line))]
    said = said or [match["side"] for line in tail for match in _CHOICE_BRACKETS.finditer(line)]
    if not said and lines and (alone := _CHOICE_ALONE.fullmatch(lines[-1])):
        said = [alone["side"]]
    if not said:
        last = _excerpt(lines[-1]) if lines else "empty"
        raise ParseFailedError(f"the answer does not say which is better: the last line is {last}")
    side = said[-1].upper()
    return side if side in _CHOICES else TIE


# --- names ---

_TEXT_PARSERS: dict[str, Parser] = {
    "identity": _identity,
    "essay_block": _essay_block,
    "essay_idea_last": _essay_idea_last,
    "essay_block_lenient": _essay_block_lenient,
}
_SCORE_PARSERS: dict[str, Parser] = {
    "identity": _score_identity,
    "in_last_line": _in_last_line,
    "complex": _complex,
    CHOICE_PARSER: _choice,
}
_BUILT_IN: dict[Stage, dict[str, Parser]] = {
    stage: _SCORE_PARSERS if stage.is_scored else _TEXT_PARSERS for stage in STAGES
}
_PREFIXES: dict[str, Callable[[str], Parser]] = {_REGEX_PREFIX: _regex_parser, _JSON_PREFIX: _json_parser}
_registered: dict[Stage, dict[str, Parser]] = {stage: {} for stage in Stage}


def parser_names(stage: Stage) -> tuple[str, ...]:
    """The names that `get_parser` knows for `stage`, built-in ones first.

    Without ``regex:<pattern>`` and ``json:<path>``.
    """
    return (*_BUILT_IN[stage], *sorted(_registered[stage]))


def get_parser(stage: Stage, name: str | None) -> Parser:
    """The parser that a template's ``parser`` cell names.

    No name means ``identity``, except for evaluations, which must name one and may also use
    ``regex:<pattern>`` and ``json:<path>``. The parser sees an answer without the thinking before it.

    Raises:
        LookupError: there is no parser of that name (the message lists those that exist), or its pattern is
            not valid.
    """
    if stage.is_scored:
        for prefix, make in _PREFIXES.items():
            if name and name.startswith(prefix):
                return _behind_thinking(make(name.removeprefix(prefix)))
    elif not name:
        name = "identity"
    parser = _BUILT_IN[stage].get(name or "") or _registered[stage].get(name or "")
    if parser is None:
        known = ", ".join(parser_names(stage)) + (", regex:<pattern>, json:<path>" if stage.is_scored else "")
        what = f"is called {_excerpt(name)}" if name else "is named, but one must be"
        raise LookupError(f"no {stage.value} parser {what}; known: {known}")
    return _behind_thinking(parser)


def _behind_thinking(parser: Parser) -> Parser:
    """`parser`, which sees the answer alone."""

    def parse(text: str) -> str:
        output = split_thinking(text)
        if output.is_open:
            raise ParseFailedError("the answer was cut off while the model was thinking")
        return parser(output.answer)

    return parse


def register(stage: Stage, name: str, parser: Parser) -> None:
    """Adds a parser from outside the package, for the life of the process.

    To register the same parser again changes nothing, so entry points may be loaded twice.

    Args:
        stage: the only stage that gets to know the parser.
        name: what a template's ``parser`` cell will say.
        parser: may raise `ParseFailedError` and nothing else; for evaluations it should return what
            `format_score` makes.

    Raises:
        ValueError: the name is empty, built in, begins with ``regex:`` or ``json:``, or belongs to another
            parser.
    """
    if not name or name.startswith(tuple(_PREFIXES)) or name in _BUILT_IN[stage]:
        raise ValueError(f"the parser name {_excerpt(name)} is reserved for {stage.value}")
    if _registered[stage].setdefault(name, parser) is not parser:
        raise ValueError(f"another {stage.value} parser is already called {_excerpt(name)}")
