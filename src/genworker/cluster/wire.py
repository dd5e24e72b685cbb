"""What driver and workers say to each other, as JSON: a message is an object, its length before it.

Both sides are the same version of genworker, which the first message proves, and belong to one user; so what
cannot be read here is a bug, not an attack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import fields
from decimal import Decimal
from typing import Any

import orjson

from genworker.core.budget import Charge
from genworker.core.coordinator import LaneNeed, Purse, Question, Reply
from genworker.core.generation import FailureKind
from genworker.core.membership import MembershipRow
from genworker.core.money import Money, Part
from genworker.core.progress import StageProgress
from genworker.core.stages import Stage

MOST_BYTES = 256 * 1024 * 1024
FIRST_BYTES = 1024 * 1024
"""Of a message from somebody who has not proven yet that he belongs to us."""
COUNTERS = ("calls", "answers", "copies", "retries", "input_tokens", "output_tokens")
"""Numbers of `genworker.core.progress.Progress` that add up over workers."""


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as it travels."""
    body = orjson.dumps(message)
    return len(body).to_bytes(4, "big") + body


async def receive(reader: asyncio.StreamReader, most_bytes: int = MOST_BYTES) -> dict[str, Any] | None:
    """The next message; ``None`` when the other side has gone, or says what cannot be read."""
    try:
        size = int.from_bytes(await reader.readexactly(4), "big")
        if size > most_bytes:
            return None
        message = orjson.loads(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError, orjson.JSONDecodeError):
        return None
    return message if isinstance(message, dict) else None


def charge_to_json(charge: Charge) -> list[Any]:
    """Money as text, exactly."""
    return [str(charge.usd), charge.calls, charge.tokens]


def charge_from_json(record: list[Any]) -> Charge:
    """See `charge_to_json`."""
    return Charge(Decimal(record[0]), record[1], record[2])


def question_to_json(question: Question) -> dict[str, Any]:
    """See `question_from_json`."""
    purse = question.purse
    return {
        "worker": question.worker,
        "seq": question.seq,
        "epoch": question.epoch,
        "ack": question.ack,
        "have": list(question.have),
        "done": list(question.done),
        "free": question.free,
        "lanes": {name: [need.want, need.out] for name, need in question.lanes.items()},
        "purse": [
            charge_to_json(purse.used),
            charge_to_json(purse.worst),
            {name: charge_to_json(charge) for name, charge in purse.parked.items()},
            purse.is_starved,
        ],
        "pauses": dict(question.pauses),
        "stopped": dict(question.stopped),
    }


def question_from_json(record: Mapping[str, Any]) -> Question:
    """A question as it was asked."""
    used, worst, parked, is_starved = record["purse"]
    return Question(
        record["worker"],
        record["seq"],
        record["epoch"],
        record["ack"],
        record["have"],
        record["done"],
        record["free"],
        {name: LaneNeed(*need) for name, need in record["lanes"].items()},
        Purse(
            charge_from_json(used),
            charge_from_json(worst),
            {name: charge_from_json(charge) for name, charge in parked.items()},
            is_starved,
        ),
        record["pauses"],
        record["stopped"],
    )


def reply_to_json(reply: Reply) -> dict[str, Any]:
    """See `reply_from_json`."""
    return {
        "seq": reply.seq,
        "epoch": reply.epoch,
        "lease_s": reply.lease_s,
        "shares": dict(reply.shares),
        "allow": charge_to_json(reply.allow),
        "give": list(reply.give),
        "disputed": list(reply.disputed),
        "pauses": dict(reply.pauses),
        "stopped": dict(reply.stopped),
        "stop": reply.stop,
        "is_over": reply.is_over,
    }


def reply_from_json(record: Mapping[str, Any]) -> Reply:
    """A reply as it was given."""
    return Reply(
        record["seq"],
        record["epoch"],
        record["lease_s"],
        record["shares"],
        charge_from_json(record["allow"]),
        record["give"],
        record["disputed"],
        record["pauses"],
        record["stopped"],
        record["stop"],
        record["is_over"],
    )


def row_to_json(row: MembershipRow, parent: int, *, replace: bool) -> list[Any]:
    """A row of a shard.

    Args:
        parent: its parent's place in the shard; -1 where that is made already.
        replace: whether its answer replaces what stands in the store.
    """
    return [row.stage.value, *row[1:], parent, replace]


def row_from_json(record: list[Any]) -> tuple[MembershipRow, int, bool]:
    """See `row_to_json`."""
    *cells, parent, replace = record
    return MembershipRow(Stage(cells[0]), *cells[1:]), parent, replace


def tally_to_json(tally: Mapping[Stage, StageProgress]) -> dict[str, list[Any]]:
    """The counts of a shard, by stage."""
    return {
        stage.value: [
            counts.done,
            counts.blocked,
            counts.stopped,
            counts.errors,
            {kind.value: number for kind, number in counts.kinds.items()},
        ]
        for stage, counts in tally.items()
    }


def tally_from_json(record: Mapping[str, list[Any]]) -> dict[Stage, StageProgress]:
    """See `tally_to_json`."""
    tally = {}
    for stage, (done, blocked, stopped, errors, kinds) in record.items():
        named = {FailureKind(kind): number for kind, number in kinds.items()}
        tally[Stage(stage)] = StageProgress(0, done, blocked, stopped, errors, named)
    return tally


class Parts(Money):
    """An account that remembers what was added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[Stage, str, Part]] = []

    def add(self, stage: Stage, model: str, run: str, part: Part) -> None:
        """Count a call, or a part of one."""
        super().add(stage, model, run, part)
        self.parts.append((stage, model, part))


def part_to_json(part: Part) -> list[Any]:
    """A part of the account of money."""
    values = (getattr(part, field.name) for field in fields(Part))
    return [str(value) if isinstance(value, Decimal) else value for value in values]


def part_from_json(record: list[Any]) -> Part:
    """See `part_to_json`."""
    spent, possible, *counts = record
    return Part(Decimal(spent), Decimal(possible), *counts)
