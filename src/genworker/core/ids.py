"""Deterministic ids of generations, tasks and combos, replicate salts; and which ids are safe as file names.

Every id is a pure function of names, so two machines, two days or two tools find the same one.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

from genworker.core.stages import Stage

GEN_ID_LENGTH = 16
"""Characters of a gen_id that genworker makes; ids from elsewhere may be longer (see `id_fault`)."""

MAX_ID_BYTES = 128
"""Longest id, in bytes of UTF-8, that genworker accepts as a directory name."""

_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
_BASE36_PAIRS = tuple(high + low for high in _BASE36 for low in _BASE36)


def _base36(number: int) -> str:
    pairs = []
    while number:
        number, rest = divmod(number, 1296)
        pairs.append(_BASE36_PAIRS[rest])  # two digits at a time: a cohort may have a million ids
    return "".join(reversed(pairs)).lstrip("0")


def gen_id(stage: Stage, task_id: str, cohort_id: str, salt: str | None = None) -> str:
    """The id of one generation: 16 characters of base 36 out of a SHA-256.

    Each part is followed by ``|``, the salt left out when there is none. The first 12 bytes of the
    digest are read as a big-endian integer, written in base 36, padded on the left with ``0`` to 16
    and cut to the first 16 characters.
    """
    parts = (stage.value, task_id, cohort_id) if salt is None else (stage.value, task_id, cohort_id, salt)
    digest = hashlib.sha256("".join(f"{part}|" for part in parts).encode()).digest()
    return _base36(int.from_bytes(digest[:12], "big")).rjust(GEN_ID_LENGTH, "0")[:GEN_ID_LENGTH]


def replicate_salt(replicate: int) -> str | None:
    """Salt of replicate `replicate` (from 1) of a draft or an evaluation; the first has none."""
    return None if replicate == 1 else f"rep{replicate}"


def essay_salt(draft_replicate: int, essay_replicate: int) -> str | None:
    """Salt of an essay: none when both replicates (from 1) are the first."""
    if draft_replicate == 1 and essay_replicate == 1:
        return None
    return f"rep{draft_replicate}-{essay_replicate}"


def draft_task_id(combo_id: str, template_id: str, model_id: str) -> str:
    """``<combo_id>__<draft_template>__<model>``."""
    return f"{combo_id}__{template_id}__{model_id}"


def essay_task_id(draft_task: str, template_id: str, model_id: str | None = None) -> str:
    """``<draft task_id>__<essay_template>``, and ``__<model>`` behind it where it is not the draft's.

    Args:
        model_id: the essay's model where that is another one than the draft's.
    """
    task = f"{draft_task}__{template_id}"
    return task if model_id is None else f"{task}__{model_id}"


def evaluation_task_id(essay_gen_id: str, template_id: str, model_id: str) -> str:
    """``<essay gen_id>__<evaluation_template>__<model>``."""
    return f"{essay_gen_id}__{template_id}__{model_id}"


def pair_task_id(first_gen_id: str, second_gen_id: str, template_id: str, model_id: str) -> str:
    """``<first essay>__<second essay>__<evaluation_template>__<model>``: their order is part of it."""
    return f"{first_gen_id}__{second_gen_id}__{template_id}__{model_id}"


def combo_id(concept_ids: Iterable[str], level: str, k_max: int) -> str:
    """``combo_v1_`` and 12 hex digits over the sorted concepts, the description level and k_max."""
    text = "|".join([*sorted(concept_ids), level, str(k_max)])
    return f"combo_v1_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def seed_for(generation_id: str, after: int | None = None) -> int:
    """A sampling seed in [0, 2³¹) that is the same for one gen_id everywhere.

    Args:
        after: the seed of an answer that is to be replaced: the new one is drawn from both, so that another
            answer comes, and a repeat that is interrupted asks the same again.
    """
    text = f"seed|{generation_id}" if after is None else f"seed|{generation_id}|{after}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF


_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*")
"""Ids that nothing can be wrong with but their length."""


def id_fault(value: str) -> str | None:
    """Why `value` cannot be an id, in words; ``None`` when it can.

    An id becomes a directory name, so it must be a plain one: no separator, no ``..``, no leading dot
    or dash, no control or invisible formatting character, no white space at its ends, at most 128
    bytes, and in Unicode's composed form (two spellings of one name would be two directories on
    Linux and one on macOS).
    """
    if not value:
        return "is empty"
    if len(value) <= MAX_ID_BYTES and _PLAIN.fullmatch(value):
        return None  # nearly every id; a catalogue may have 50,000
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "holds a lone surrogate, which is not text"
    if size > MAX_ID_BYTES:
        return f"has {size} bytes, the limit is {MAX_ID_BYTES}"
    if "/" in value or "\\" in value:
        return "holds a path separator"
    if value[0] == "." or ".." in value:
        return "begins with a dot or holds '..'"
    if value[0] == "-":
        return "begins with a dash"
    if any(unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Cn", "Co") for char in value):
        return "holds a control or invisible character"
    if value != value.strip():
        return "begins or ends with white space"
    if unicodedata.normalize("NFKC", value) != value:
        return "is not in its plain Unicode form (full-width or decomposed characters)"
    return None
