"""Writes the pages of the reference that the code itself can tell: commands, configuration, exit codes.

``python -m documentation.reference`` writes them (``make reference``); a test compares them with what stands in
``docs/reference``, so that no option and no key can be forgotten there.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from enum import Enum
from types import UnionType
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from genworker.cli import app
from genworker.messages import CHAPTERS, MESSAGES, Message
from genworker.project import endpoints, sections
from genworker.project import settings as settings_module
from genworker.project.endpoints import KINDS, EndpointSettings
from genworker.project.sections import PriceSettings, SamplingSettings, StageSettings
from genworker.project.settings import CapSettings, ModelSettings, RetrySettings, Settings
from support.wire_examples import FORMS, spellings

from .blocks import DOCS

MADE = "<!-- made by `make reference`; edit the code's own words -->\n\n"


def _cell(text: str) -> str:
    """Text within a table: no bar that ends the cell, no line end."""
    return " ".join(text.split()).replace("|", "\\|")


# Commands


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    # By what they have: typer brings a click of its own.
    if hasattr(command, "commands"):
        for child, inner in sorted(command.commands.items()):
            yield from _commands(inner, f"{name} {child}")
    else:
        yield name, command


def _is_enum(one: Any) -> bool:
    return isinstance(one, type) and issubclass(one, Enum)


def _usage(name: str, command: Any) -> str:
    words = [name]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            metavar = parameter.metavar or (parameter.name or "").upper()
            words.append(metavar if parameter.required or metavar.startswith("[") else f"[{metavar}]")
    return " ".join([*words, "[OPTIONS]"])


def _option_row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = ""
    annotation = option.type_descriptor.annotation
    inner = next((one for one in (annotation, *typing.get_args(annotation)) if _is_enum(one)), None)
    if inner is not None:
        value = " ".join(f"`{choice.value}`" for choice in inner)
    elif not option.is_flag and not option.count:
        value = f"`{option.metavar or getattr(annotation, '__name__', 'VALUE').upper()}`"
    if option.multiple:
        value += " (repeatable)"
    default = option.default
    shown = ""
    plain = isinstance(default, str | int | float) and not isinstance(default, bool)
    if plain and "UNSET" not in repr(default).upper():
        shown = f" Default: `{getattr(default, 'value', default)}`."
    return f"| {names} | {value} | {_cell(option.help or '')}{shown} |"


def commands_page() -> str:
    """Every command with its arguments and options."""
    root = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        "Data goes to stdout, everything else to stderr. `-h` or `--help` of each command says the same as this page.",
        "What a command returns to its caller stands in [exit codes](exit-codes.md).",
        "",
    ]
    for name, command in _commands(root, "genworker"):
        lines += [f"## {name.removeprefix('genworker ')}", "", "```text", _usage(name, command), "```", ""]
        lines += [inspect.cleandoc(command.help or ""), ""]
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [
            one
            for one in command.params
            if one.param_type_name == "option" and not one.hidden and "--help" not in one.opts
        ]
        helped = [one for one in arguments if getattr(one, "help", None)]
        if helped:
            lines += ["| argument | meaning |", "|---|---|"]
            lines += [f"| `{one.metavar or one.name}` | {_cell(one.help or '')} |" for one in helped]
            lines.append("")
        if options:
            lines += ["| option | value | meaning |", "|---|---|---|"]
            lines += [_option_row(one) for one in options]
            lines.append("")
    return MADE + "\n".join(lines)


# Configuration


def _words_of_fields() -> dict[str, dict[str, str]]:
    """Class → field → the string below the field in the source of the settings."""
    found: dict[str, dict[str, str]] = {}
    sources = [
        node
        for module in (sections, endpoints, settings_module)
        for node in ast.parse(inspect.getsource(module)).body
    ]
    for node in sources:
        if not isinstance(node, ast.ClassDef):
            continue
        words: dict[str, str] = {}
        for here, below in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(here, ast.AnnAssign)
                and isinstance(here.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                words[here.target.id] = " ".join(below.value.value.split())
        found[node.name] = words
    return found


def describe(model: type[BaseModel], field: str, words: dict[str, dict[str, str]]) -> str:
    """What the code says of a key: the nearest class that has words for it."""
    for owner in model.__mro__:
        text = words.get(owner.__name__, {}).get(field)
        if text:
            return text
    return ""


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin in (typing.Union, UnionType):
        return " or ".join(dict.fromkeys(_type_name(one) for one in arguments if one is not type(None)))
    if origin is typing.Literal:
        return " or ".join(f'`"{one}"`' for one in arguments)
    if origin in (list, tuple):
        return f"list of {_type_name(arguments[0])}"
    if origin is dict or annotation is dict:
        return "table"
    names = {
        "str": "text",
        "int": "integer",
        "float": "number",
        "Decimal": "number",
        "bool": "boolean",
        "Path": "path",
    }
    name = getattr(annotation, "__name__", str(annotation))
    if name == "Any":
        return "any"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return names.get(name, name)


def _default(field: Any) -> str:
    value = field.default
    if value is PydanticUndefined:
        value = field.default_factory() if field.default_factory else None
        if field.is_required():
            return "required"
    if value is None or value in ({}, [], ()) or isinstance(value, BaseModel):
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def rows(
    model: type[BaseModel], words: dict[str, dict[str, str]], leave_out: frozenset[str] = frozenset()
) -> list[str]:
    """A table of a section's keys."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name in leave_out:
            continue
        lines.append(
            f"| `{name}` | {_cell(_type_name(field.annotation))} | {_default(field)} "
            f"| {_cell(describe(model, name, words))} |"
        )
    return [*lines, ""]


def configuration_page() -> str:
    """Every section and key, with type, default and meaning."""
    words = _words_of_fields()
    lines = [
        "# Configuration",
        "",
        "The file is `config/genworker.toml` unless `--config` names another one. Any key can also come from the",
        "environment: `GENWORKER_` and the key in capitals, two underscores between a section and its key, such as",
        "`GENWORKER_ENDPOINTS__OPENROUTER__RPM=1200`; or from `.env` in the working directory. A flag goes before the",
        "environment, that before `.env`, that before the file. `genworker status -v` shows where each value came from.",
        "",
        "A key that no section knows is refused, with the nearest one that it knows.",
        "",
        "## The top",
        "",
        *rows(Settings, words, frozenset({"endpoints", "models", "stages", "retries", "caps", *SECTIONS})),
        "## How answers are drawn",
        "",
        "These keys may stand in an endpoint, in a stage, in a model, and in a model's stage. The more specific wins, in",
        'that order; what none of them sets is not sent. The text `"unset"` takes away what a wider section has set.',
        "`extra_body` is merged key by key.",
        "",
        *rows(SamplingSettings, words),
        "## [stages.STAGE]",
        "",
        "`STAGE` is `draft`, `essay` or `evaluation`. The keys of *how answers are drawn*, and:",
        "",
        *rows(StageSettings, words, frozenset(SamplingSettings.model_fields)),
        "## [endpoints.NAME]",
        "",
        "A server that answers. `kind` says what it speaks, and so which keys it has. The keys of *how answers are",
        "drawn*, and for every kind:",
        "",
        *rows(EndpointSettings, words, frozenset({*SamplingSettings.model_fields, "kind"})),
    ]
    for name, kind in KINDS.items():
        lines += [
            f'### kind = "{name}"',
            "",
            " ".join((kind.settings.__doc__ or "").split()),
            "",
        ]
        own = rows(kind.settings, words, frozenset({*EndpointSettings.model_fields}))
        if (
            kind.settings.model_fields["max_concurrency"].default
            != EndpointSettings.model_fields["max_concurrency"].default
        ):
            lines += [
                f"`max_concurrency` is {kind.settings.model_fields['max_concurrency'].default} unless it is set.",
                "",
            ]
        lines += own if len(own) > 3 else []
    lines += [
        "## [models.ID]",
        "",
        "`ID` is an id of `llm_models.csv`. The keys of *how answers are drawn*, and:",
        "",
        *rows(ModelSettings, words, frozenset(SamplingSettings.model_fields)),
        "### [models.ID.stages.STAGE]",
        "",
        "The keys of *how answers are drawn*, for one stage of one model.",
        "",
        "### price",
        "",
        "A table of an endpoint or a model: US dollars per million tokens. It goes before what genai-prices knows.",
        "",
        *rows(PriceSettings, words),
        "## [retries]",
        "",
        *rows(RetrySettings, words),
        "## [caps]",
        "",
        "Hard caps over a cohort and all its runs; `--max-cost`, `--max-calls` and `--max-tokens` go before them.",
        "",
        *rows(CapSettings, words),
    ]
    for name in SECTIONS:
        field = Settings.model_fields[name]
        model = _section(field.annotation)
        lines += [f"## [{name}]", "", " ".join((model.__doc__ or "").split()), "", *rows(model, words)]
    return MADE + "\n".join(lines)


def _section(annotation: Any) -> type[BaseModel]:
    for one in (annotation, *typing.get_args(annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    raise TypeError(f"{annotation} is no section")


SECTIONS = tuple(
    name
    for name, field in Settings.model_fields.items()
    if name not in ("endpoints", "models", "stages", "retries", "caps")
    and any(
        isinstance(one, type) and issubclass(one, BaseModel)
        for one in (field.annotation, *typing.get_args(field.annotation))
    )
)
"""Sections of the configuration beside those that this page explains one by one."""


def unexplained() -> list[str]:
    """Keys without a word below their field."""
    words = _words_of_fields()
    models: list[type[BaseModel]] = [
        Settings,
        SamplingSettings,
        StageSettings,
        ModelSettings,
        RetrySettings,
        CapSettings,
        PriceSettings,
        *(kind.settings for kind in KINDS.values()),
        *(_section(Settings.model_fields[name].annotation) for name in SECTIONS),
    ]
    return sorted(
        {
            f"{model.__name__}.{name}"
            for model in models
            for name in model.model_fields
            if not describe(model, name, words)
        }
    )


# What becomes of answers

OUTCOMES = DOCS / "outcomes.md"
BEGIN, END = "<!-- made by `make reference`: begin -->", "<!-- made by `make reference`: end -->"


def answers_table() -> str:
    """A row for each kind of answer, read by the code that reads those of endpoints."""
    lines = ["| what comes | such as | what becomes of it |", "|---|---|---|"]
    for form in FORMS:
        (reading,) = form.readings()
        lines.append(f"| {_cell(form.what)} | {_cell(spellings(form))} | {reading} |")
    return "\n".join(lines)


def outcomes_page() -> str:
    """The page on outcomes, with the table of answers as it is now."""
    head, _, rest = OUTCOMES.read_text(encoding="utf-8").partition(BEGIN)
    return f"{head}{BEGIN}\n{answers_table()}\n{END}{rest.partition(END)[2]}"


# Messages


def messages_page() -> str:
    """``docs/reference/messages.md``: every kind of message, by its short name."""
    lines = [
        "# Messages",
        "",
        "Every message of wrong input says itself where it is (`where:`) and how to mend it (`fix:`). Its last line",
        "names it: `genworker explain NAME` says in the terminal what this page says. The words of a message do as",
        'well: `genworker explain "HTTP 402: insufficient_quota"`.',
        "",
    ]
    chapters = dict.fromkeys(message.chapter for message in sorted(MESSAGES, key=_chapter))
    for chapter in chapters:
        lines += [f"## {chapter}", ""]
        for message in MESSAGES:
            if message.chapter != chapter:
                continue
            plain = [words for words in message.words if re.search(r"[\\^$(|\[]", words) is None]
            lines += [f"### {message.name} {{ #{message.name} }}", ""]
            if plain:
                lines += [" · ".join(f"*{words}*" for words in plain[:6]), ""]
            lines += [message.means, "", _linked(message.mends), ""]
    return MADE + "\n".join(lines).rstrip() + "\n"


def _chapter(message: Message) -> int:
    return CHAPTERS.index(message.chapter)


def _linked(text: str) -> str:
    """The pages that a text names, as links."""
    return re.sub(
        r"docs/([a-z/-]+)\.md", lambda found: f"[{found[1].rpartition('/')[2]}](../{found[1]}.md)", text
    )


PAGES = {
    "reference/commands.md": commands_page,
    "reference/configuration.md": configuration_page,
    "outcomes.md": outcomes_page,
    "reference/messages.md": messages_page,
}
"""Page below ``docs`` → what writes it."""


def main() -> None:
    """Write the pages."""
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), encoding="utf-8")
        print(f"wrote docs/{name}", file=sys.stderr)


if __name__ == "__main__":
    main()
