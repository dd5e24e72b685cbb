"""The submit protocol, walked through exhaustively: every kill, every fate of a create, over the shipped fold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from genworker.core.batches import (
    Absent,
    Found,
    Line,
    Listed,
    Step,
    Story,
    next_step,
    read_log,
    seek,
)

SETTLE = 2
"""Ticks for which a provider may still act on a call whose connection has ended."""
KILLS = 2
CREATES = 2
STOPS = 1
LINES = 9
"""Lines of a log up to which worlds are followed: three creates, each sought and judged."""
Entry = tuple[str, float, str]


@dataclass(frozen=True)
class Faults:
    """What a careless writer would do."""

    no_line_before_the_call: bool = False
    believes_one_empty_listing: bool = False
    counts_from_creating: bool = False
    effect_after_ticks: int = SETTLE


@dataclass(frozen=True)
class World:
    """One state of everything: the log, what the provider has, what may still take effect, the clock."""

    log: tuple[Entry, ...] = ()
    batches: tuple[str, ...] = ()  # that run and will be billed, in order of their birth
    cancelled: tuple[str, ...] = ()
    pending: tuple[int, ...] = ()  # ticks until a lost call takes effect, at most
    now: int = 0
    kills: int = 0
    stops: int = 0
    listed_empty: bool = False
    fetched: bool = False

    def write(self, line: Line, word: str = "") -> World:
        return replace(self, log=(*self.log, (line.value, float(self.now), word)))

    @property
    def story(self) -> Story:
        return read_log(_line(entry) for entry in self.log)


def _line(entry: Entry) -> dict[str, object]:
    kind, at_s, word = entry
    return {"line": kind, "at_s": at_s, "server_s": at_s, "file_id": word, "batch_id": word, "again": True}


def _born(world: World) -> World:
    name = f"b{len(world.batches) + len(world.cancelled)}"
    return replace(world, batches=(*world.batches, name))


def _tick(world: World) -> Iterator[World]:
    """A tick passes; each lost call may take effect in it, and has to in its last one or never."""
    later = replace(world, now=world.now + 1, pending=(), listed_empty=False)
    worlds = [later]
    for ticks in world.pending:
        following = []
        for each in worlds:
            following.append(_born(each))
            if ticks > 1:
                following.append(replace(each, pending=(*each.pending, ticks - 1)))
            else:
                following.append(each)  # it never takes effect
        worlds = following
    yield from worlds


def _create(world: World, faults: Faults) -> Iterator[World]:
    """The call goes out: every fate of it, and a kill before its answer is noted."""
    late = (*world.pending, faults.effect_after_ticks)
    made = _born(world)
    yield made.write(Line.CREATED, made.batches[-1])
    yield world.write(Line.REFUSED, "again")  # a certain no, for now
    for after in (made, world, replace(world, pending=late)):
        yield from _ended(after, faults)  # no answer, and this process lives
        if after.kills < KILLS:
            yield replace(after, kills=after.kills + 1)


def _ended(world: World, faults: Faults) -> Iterator[World]:
    """The call's connection has ended without an answer; if it was a good process it has a line to go by."""
    if not world.story.is_uncertain and not faults.no_line_before_the_call:
        raise AssertionError("a call went out without a line")
    yield world.write(Line.SOUGHT) if world.story.is_uncertain else world


def _seek(world: World, faults: Faults) -> Iterator[World]:
    story = world.story
    if story.sought_s is None:
        yield world.write(Line.SOUGHT)
        return
    listing = [Listed(name, frozenset({"nonce"}), 0.0) for name in world.batches]
    asked_s = float(world.now)
    if faults.counts_from_creating:
        last = max(at_s for kind, at_s, _ in world.log if kind == Line.CREATING)
        story = replace(story, sought_s=min(last, story.sought_s or last))
    if faults.believes_one_empty_listing and not listing:
        yield world.write(Line.ABSENT)
        return
    verdict = seek(
        story,
        [listing, listing] if world.listed_empty else [listing],
        asked_s,
        marks={"nonce"},
        count=7,
        known=(),
        same_key=True,
        settle_s=SETTLE,
    )
    match verdict:
        case Found(batch_id, twins):
            found = world.write(Line.CREATED, batch_id)
            for twin in twins:
                found = _cancel(found, twin)
            yield found
        case Absent():
            yield world.write(Line.ABSENT)
        case _:
            if world.now < (story.sought_s or 0.0) + SETTLE:
                yield from _tick(world)
                return
            # Two listings at two moments: something may happen between them.
            yield replace(world, listed_empty=True)
            for later in _tick(world):
                yield replace(later, listed_empty=True)


def _cancel(world: World, twin: str) -> World:
    batches = tuple(name for name in world.batches if name != twin)
    return replace(world, batches=batches, cancelled=(*world.cancelled, twin)).write(Line.TWIN, twin)


def _following(world: World, faults: Faults) -> Iterator[World]:
    """Every world that may come after this one."""
    story = world.story
    if world.kills < KILLS:
        yield replace(world, kills=world.kills + 1, listed_empty=False)
    if len(world.log) > LINES or len(world.pending) > CREATES:
        return
    step = next_step(story, wants_file=True)
    if step is Step.UPLOAD:
        yield world.write(Line.UPLOADED, "file")
    elif step is Step.CREATE:
        if story.creates >= CREATES:
            return
        going = world if faults.no_line_before_the_call else world.write(Line.CREATING)
        if going.kills < KILLS:
            yield replace(going, kills=going.kills + 1)  # noted and not sent
        if going.stops < STOPS:  # stopped between the line and the call, for longer than any pause
            waiting = [replace(going, stops=going.stops + 1)]
            for _ in range(SETTLE + 1):
                waiting = [later for each in waiting for later in _tick(each)]
            for each in waiting:
                yield from _create(each, faults)
        yield from _create(going, faults)
    elif step is Step.SEEK:
        yield from _seek(world, faults)
    elif step is Step.POLL and not world.fetched:
        polled = world
        if story.was_absent:  # every poll lists, too
            for name in world.batches:
                if name != story.batch_id:
                    polled = _cancel(polled, name)
        yield replace(polled, fetched=True)


@dataclass
class Walk:
    worlds: int = 0
    paid_twice: int = 0
    lost: int = 0
    ends: int = 0


def walk(faults: Faults) -> Walk:
    found = Walk()
    seen: set[World] = set()
    todo = [World()]
    while todo:
        world = todo.pop()
        if world in seen:
            continue
        seen.add(world)
        found.worlds += 1
        # What runs at the same time is billed twice; a twin that was cancelled at once may be, too.
        if len(world.batches) + len(world.cancelled) > 1:
            found.paid_twice += 1
            continue
        if world.fetched:
            found.ends += 1
            assert world.story.batch_id in world.batches
            continue
        following = list(_following(world, faults))
        if not following and world.batches and len(world.log) <= LINES:
            found.lost += 1
        todo.extend(following)
    return found


def test_no_world_pays_twice_and_none_loses_a_batch() -> None:
    found = walk(Faults())
    assert found.worlds > 500
    assert found.ends > 50
    assert (found.paid_twice, found.lost) == (0, 0)


@pytest.mark.parametrize(
    "faults",
    [
        Faults(no_line_before_the_call=True),
        Faults(believes_one_empty_listing=True),
        Faults(counts_from_creating=True),
        Faults(effect_after_ticks=SETTLE + 1),
    ],
    ids=["no line", "one empty listing", "from creating", "an effect after the settling time"],
)
def test_the_walk_finds_what_a_careless_writer_does(faults: Faults) -> None:
    assert walk(faults).paid_twice > 0
