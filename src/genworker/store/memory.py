"""A store in memory, for tests, simulations and notebooks: what the filesystem store does, without a disk."""

from __future__ import annotations

from genworker.core.generation import Answer, Generation, finish
from genworker.core.stages import Stage
from genworker.errors import StoreError


class MemoryStore:
    """Generations in a dictionary; see `genworker.ports.GenerationStore`.

    Args:
        shared: another worker's store, to hold the same generations and claims as it does.

    Attributes:
        generations: what the store holds, by stage and gen_id.
        aside: what was replaced or came second, in order.
        refuses: raised by every commit while it is set, as by a full disk.
    """

    def __init__(self, shared: MemoryStore | None = None) -> None:
        self.generations: dict[tuple[Stage, str], Generation] = {} if shared is None else shared.generations
        self.aside: list[Generation] = [] if shared is None else shared.aside
        self._claims: dict[tuple[Stage, str], MemoryStore] = {} if shared is None else shared._claims
        self.refuses: StoreError | None = None

    async def __aenter__(self) -> MemoryStore:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for key, owner in list(self._claims.items()):
            if owner is self:
                del self._claims[key]

    async def claim(self, stage: Stage, gen_id: str) -> bool:
        """Reserve a generation for this store's owner."""
        return self._claims.setdefault((stage, gen_id), self) is self

    async def release(self, stage: Stage, gen_id: str) -> None:
        """Give a claim back; another owner's stays."""
        if self._claims.get((stage, gen_id)) is self:
            del self._claims[stage, gen_id]

    async def make_room(self, stage: Stage, gen_id: str, size_bytes: int) -> None:
        """There is room, unless commits are refused."""
        if self.refuses is not None:
            raise self.refuses

    async def find(self, stage: Stage, gen_id: str) -> Generation | None:
        """The generation in the store, good or failed."""
        return self.generations.get((stage, gen_id))

    async def load_parsed(self, stage: Stage, gen_id: str) -> str:
        """The parsed text of a generation that is done."""
        stored = self.generations.get((stage, gen_id))
        if stored is None or stored.parsed_text is None:
            raise StoreError(f"there is no parsed text of {stage.value} {gen_id}", path=f"{stage}/{gen_id}")
        return stored.parsed_text

    async def commit(self, answer: Answer, *, replace: bool = False) -> Generation:
        """Judge an answer and put it in its place."""
        if self.refuses is not None:
            raise self.refuses
        generation = finish(answer)
        key = (answer.stage, answer.gen_id)
        stored = self.generations.get(key)
        if stored is not None and not replace:
            self.aside.append(generation)
            return stored
        if stored is not None:
            self.aside.append(stored)
        self.generations[key] = generation
        return generation
