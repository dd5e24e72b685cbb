"""Where prompts begin alike, so that an endpoint's prompt cache can pay: positions in a prompt, and names.

A prompt is its template's head, the parent's text (or the concepts), and the rest. Two kinds of beginnings
are shared: the head alone, by all prompts of a template; head and text, by all that is asked about one text.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from genworker.core.prompts import PromptTemplate, draft_values, trial_values
from genworker.errors import TemplateError

LEAST_TOKENS = 1024
"""No endpoint caches less."""
CHARACTERS_PER_TOKEN = 4
_MARK = "\ue000mark\ue000"


@dataclass(frozen=True, slots=True)
class Frame:
    """What a template puts around the text that it is given.

    Attributes:
        tail: behind the text; ``None`` where the text stands in more than one place.
    """

    head: str
    tail: str | None


def frame(template: PromptTemplate) -> Frame | None:
    """A template's frame, found by rendering a mark; ``None`` where the mark does not come out unchanged."""
    is_root = template.stage.is_root
    values = draft_values([(_MARK, _MARK)]) if is_root else trial_values(template, _MARK)
    try:
        parts = template.render(values).split(_MARK)
    except TemplateError:
        return None
    if len(parts) < 2:
        return None
    return Frame(parts[0], parts[1] if len(parts) == 2 else None)


def is_long(characters: int) -> bool:
    """Whether a beginning of this length is worth a cache."""
    return characters >= LEAST_TOKENS * CHARACTERS_PER_TOKEN


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginnings of one prompt that are to be cached.

    Attributes:
        cache_at: their lengths in characters, rising.
        name: of the longest, the same for all calls that share it.
    """

    cache_at: tuple[int, ...]
    name: str


def prefix_of(
    prompt: str, shape: Frame, *, model: str, same_template: int, same_text: int, same_prompt: int
) -> Prefix | None:
    """Choose the beginnings of a prompt that pay.

    Args:
        same_template, same_text, same_prompt: calls of this run, this one included, that share the head;
            head and text; the whole prompt.
    """
    if not prompt.startswith(shape.head):
        return None
    found = []
    if same_template > 1 and is_long(len(shape.head)):
        found.append(len(shape.head))
    if same_text > 1 and shape.tail is not None and prompt.endswith(shape.tail):
        end = len(prompt) - len(shape.tail)
        if is_long(end) and end > len(shape.head):
            found.append(end)
    if same_prompt > 1 and is_long(len(prompt)) and same_prompt >= same_text:
        found = [*found[:1], len(prompt)] if found and found[0] == len(shape.head) else [len(prompt)]
    if not found:
        return None
    digest = blake2b(prompt[: found[-1]].encode("utf-8", "replace"), digest_size=12)
    digest.update(f"|{model}".encode())
    return Prefix(tuple(found), digest.hexdigest())
