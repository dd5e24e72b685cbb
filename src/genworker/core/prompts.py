"""Template and values in, prompt out: Jinja 2, sandboxed, undefined names refused.

Model output reaches a template only as a value; it is never compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from genworker.core.stages import Stage
from genworker.errors import TemplateError

MAX_PROMPT_CHARS = 20_000_000
"""A prompt that grows past this is a runaway template, not a prompt."""

MAX_RANGE_TOTAL = 100_000
"""Numbers that all `range` calls of one rendering may yield together."""

TRIAL_TEXT = "A paragraph of text, as a model may write it.\n" * 50
"""The parent's text when a template is tried before anything is paid for."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Refuses Python's attributes, changes of values, and small expressions that make huge strings."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and any(isinstance(side, str | list | tuple) for side in (left, right)):
            size = next(side for side in (left, right) if isinstance(side, str | list | tuple))
            times = right if size is left else left
            if isinstance(times, int) and len(size) * times > MAX_PROMPT_CHARS:
                raise SecurityError("a repetition makes the prompt too large")
        if operator == "**" and isinstance(right, int | float) and right > 64:
            raise SecurityError("a power is too large")
        return super().call_binop(context, operator, left, right)


_ENVIRONMENT = _Sandbox(undefined=StrictUndefined, autoescape=False)
# These make text out of nothing, or state; no prompt needs them.
for _name in ("lipsum", "cycler", "joiner", "namespace"):
    _ENVIRONMENT.globals.pop(_name, None)


class _RangeBudget:
    """`range` for one rendering: all calls together may yield `MAX_RANGE_TOTAL` numbers."""

    def __init__(self) -> None:
        self._left = MAX_RANGE_TOTAL

    def __call__(self, *arguments: int) -> range:
        numbers = range(*arguments)
        self._left -= len(numbers)
        if self._left < 0:
            raise SecurityError(f"ranges of more than {MAX_RANGE_TOTAL} numbers")
        return numbers


class PromptTemplate:
    """A compiled template of one stage.

    Args:
        source: the template's text.
        stage: decides which names it may use (see `Stage.variables`).

    Attributes:
        is_blind: whether it uses none of the stage's variables: all its prompts are the same then. Single
            braces are the usual cause; it is refused before anything is paid for.
        reads_two: whether it compares two texts: it uses one of `Stage.pair_variables`.
        misses: of those two names the one that it leaves out; ``None`` for every other template.

    Raises:
        TemplateError: the text is not a valid template, or uses a name that the stage does not have.
    """

    __slots__ = ("_template", "is_blind", "misses", "reads_two", "stage")

    def __init__(self, source: str, stage: Stage) -> None:
        self.stage = stage
        try:
            tree = _ENVIRONMENT.parse(source)
            used = self._check_names(tree, stage)
            self.is_blind = not used
            left_out = [name for name in stage.pair_variables if name not in used]
            self.reads_two = len(left_out) < len(stage.pair_variables)
            self.misses = left_out[0] if self.reads_two and left_out else None
            self._template = _ENVIRONMENT.from_string(source)
        except TemplateSyntaxError as error:
            raise TemplateError(f"the template is not valid: {error.message}", line=error.lineno) from None
        except RecursionError:
            raise TemplateError("the template is nested too deeply") from None

    @staticmethod
    def _check_names(tree: nodes.Template, stage: Stage) -> set[str]:
        """Find undefined names without rendering: a branch that is rarely taken is checked as well.

        Returns:
            Those of the stage's variables that are used.
        """
        from jinja2.meta import find_undeclared_variables

        own = {*stage.variables, *stage.pair_variables}
        allowed = {*own, *_ENVIRONMENT.globals}
        tested = {
            node.node.name
            for node in tree.find_all(nodes.Test)
            if node.name in ("defined", "undefined") and isinstance(node.node, nodes.Name)
        }
        used = find_undeclared_variables(tree)
        for name in sorted(used - allowed - tested):
            line = next((node.lineno for node in tree.find_all(nodes.Name) if node.name == name), None)
            offered = ", ".join(sorted(own))
            raise TemplateError(
                f"the template uses the undefined name '{name}'; a template of stage {stage.value} "
                f"is given: {offered}",
                line=line,
            )
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise TemplateError("the template loads another file, which templates cannot", line=node.lineno)
        mixed = used & set(stage.variables), used & set(stage.pair_variables)
        if all(mixed):
            one, two = min(mixed[0]), min(mixed[1])
            raise TemplateError(
                f"the template uses both '{one}' and '{two}': it reads one text, or it compares two",
                line=next((node.lineno for node in tree.find_all(nodes.Name) if node.name == two), None),
            )
        return used & own

    def render(self, values: Mapping[str, object]) -> str:
        """The prompt.

        Raises:
            TemplateError: a name is undefined after all, the sandbox refused an access, or the prompt
                grew past `MAX_PROMPT_CHARS`.
        """
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate({**values, "range": _RangeBudget()}):
                parts.append(part)
                size += len(part)
                if size > MAX_PROMPT_CHARS:
                    raise TemplateError(f"the prompt grows past {MAX_PROMPT_CHARS} characters")
        except UndefinedError as error:
            raise TemplateError(f"the template uses an undefined name: {error.message}") from None
        except SecurityError as error:
            raise TemplateError(f"the template asks for what templates may not do: {error.message}") from None
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
            raise TemplateError(f"the template cannot be rendered: {error}") from None
        return "".join(parts)


def draft_values(concepts: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Values of a draft's template: `concepts`, (name, content) pairs in the combo's order."""
    return {"concepts": [{"name": name, "content": content} for name, content in concepts]}


def child_values(stage: Stage, parent_text: str, second_text: str | None = None) -> dict[str, object]:
    """Values of the template of a stage that has a parent: each name stands for the parent's parsed text.

    Args:
        second_text: of the second parent, for a template that compares two texts.
    """
    if second_text is not None:
        return dict(zip(stage.pair_variables, (parent_text, second_text), strict=True))
    return dict.fromkeys(stage.variables, parent_text)


def trial_values(template: PromptTemplate, text: str) -> dict[str, object]:
    """Values that give a child's template the same text wherever it shows one."""
    return child_values(template.stage, text, text if template.reads_two else None)
