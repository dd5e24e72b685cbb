from __future__ import annotations

import pytest

from genworker.core import prompts
from genworker.core.prompts import PromptTemplate, child_values, draft_values
from genworker.core.stages import Stage
from genworker.errors import TemplateError


def test_concepts_come_in_the_order_given() -> None:
    template = PromptTemplate("{% for c in concepts %}{{ c.name }}={{ c.content }};{% endfor %}", Stage.DRAFT)
    assert template.render(draft_values([("B", "two"), ("A", "one")])) == "B=two;A=one;"


def test_essays_know_their_draft_under_both_names() -> None:
    template = PromptTemplate("{{ draft_block }}|{{ links_block }}", Stage.ESSAY)
    assert template.render(child_values(Stage.ESSAY, "text")) == "text|text"


def test_model_output_is_never_a_template() -> None:
    template = PromptTemplate("{{ response }}", Stage.EVALUATION)
    hostile = "{{ 7 * 7 }}{% raw %}<b>{{ config }}"
    assert template.render(child_values(Stage.EVALUATION, hostile)) == hostile


def test_raw_blocks_and_stray_braces_stay() -> None:
    template = PromptTemplate("{% raw %}{{ i }}{% endraw %} {a} {{ response }}", Stage.EVALUATION)
    assert template.render(child_values(Stage.EVALUATION, "x")) == "{{ i }} {a} x"


def test_an_undefined_name_is_named_with_its_line() -> None:
    with pytest.raises(TemplateError, match=r"undefined name 'essay'.*response") as caught:
        PromptTemplate("one\ntwo {{ essay }}", Stage.EVALUATION)
    assert caught.value.line == 2


def test_an_undefined_name_is_found_in_a_branch_that_is_not_taken() -> None:
    with pytest.raises(TemplateError, match="'nope'"):
        PromptTemplate("{% if false %}{{ nope }}{% endif %}", Stage.DRAFT)


def test_a_name_that_is_asked_for_may_be_absent() -> None:
    template = PromptTemplate("{% if extra is defined %}{{ extra }}{% endif %}ok", Stage.DRAFT)
    assert template.render(draft_values([])) == "ok"


def test_an_undefined_attribute_is_refused_when_rendering() -> None:
    template = PromptTemplate("{% for c in concepts %}{{ c.nmae }}{% endfor %}", Stage.DRAFT)
    with pytest.raises(TemplateError, match="nmae"):
        template.render(draft_values([("A", "one")]))


def test_a_syntax_error_has_its_line() -> None:
    with pytest.raises(TemplateError) as caught:
        PromptTemplate("a\nb\n{% for %}", Stage.DRAFT)
    assert caught.value.line == 3


@pytest.mark.parametrize(
    "source",
    [
        "{{ response.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ concepts.append(1) }}",
        "{% for i in range(1000000) %}x{% endfor %}",
        "{% for i in range(400) %}{% for j in range(400) %}x{% endfor %}{% endfor %}",
        "{{ 'x' * 999999999 }}",
        "{{ 2 ** 99999999 }}",
        "{{ concepts | nofilter }}",
        "{{ 1 / 0 }}",
    ],
)
def test_what_a_template_may_not_do_is_refused(source: str) -> None:
    stage = Stage.EVALUATION if "response" in source else Stage.DRAFT
    values = child_values(stage, "x") if stage is Stage.EVALUATION else draft_values([("A", "one")])
    with pytest.raises(TemplateError):
        PromptTemplate(source, stage).render(values)


@pytest.mark.parametrize("source", ["{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}"])
def test_templates_load_no_files(source: str) -> None:
    with pytest.raises(TemplateError, match="another file"):
        PromptTemplate(source, Stage.DRAFT)


def test_a_prompt_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "MAX_PROMPT_CHARS", 1000)
    template = PromptTemplate("{% for i in range(100) %}{{ response }}{% endfor %}", Stage.EVALUATION)
    with pytest.raises(TemplateError, match="1000 characters"):
        template.render(child_values(Stage.EVALUATION, "x" * 100))
