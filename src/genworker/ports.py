"""The seams of the runner: what it expects of an endpoint, of a store and of whoever watches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

from genworker.core.batches import BatchResult, Listed, Look
from genworker.core.budget import Charge
from genworker.core.completion import Completion, CompletionRequest
from genworker.core.events import Event
from genworker.core.facts import CallFacts, RowFacts
from genworker.core.generation import Answer, Generation
from genworker.core.stages import Stage
from genworker.errors import StoreError


class Provider(Protocol):
    """An endpoint that answers calls, one try each.

    `complete` never retries, never sleeps, and holds no limits: those decisions are the scheduler's.
    It may be called by many tasks at once. Cancelling it abandons the call.
    """

    async def open(self) -> None:
        """Make ready to be called: start what has to run. Called once, before the first call."""

    async def complete(self, request: CompletionRequest) -> Completion:
        """Ask once.

        Raises:
            RateLimitedError: fewer calls, please.
            ProviderUnavailableError: out of order for now; another try may help.
            MalformedAnswerError: something came back that is not an answer.
            RequestRejectedError: another try will not help; its scope says whom else it concerns.
        """
        ...

    async def aclose(self) -> None:
        """Free connections and stop what `open` started. Called once, also after a failed `open`."""


class ModelLister(Protocol):
    """An endpoint that may have a list of its models."""

    async def models(self) -> frozenset[str] | None:
        """Ask once for the names of its models, which costs nothing; ``None`` when it tells none.

        Raises:
            ProviderError: it refuses, or there is no way to it.
        """
        ...

    async def aclose(self) -> None:
        """Free connections. Called once."""


class BatchProvider(Protocol):
    """An endpoint that takes many calls as one batch. Each method makes one try, as `Provider.complete` does,
    and raises the same errors.

    Attributes:
        wants_file: the requests are uploaded first.
        has_marks: a listing shows whose a batch is.
        is_free_when_lapsed: requests that expire or are cancelled cost nothing; the provider says so.
    """

    wants_file: bool
    has_marks: bool
    is_free_when_lapsed: bool

    async def aclose(self) -> None:
        """Free connections. Called once."""

    def encode(self, name: str, request: CompletionRequest) -> bytes:
        """A request as a line, without its end. It asks exactly what a live call asks."""
        ...

    async def upload(self, path: Path, name: str) -> str:
        """Send a file of lines; returns the provider's name for it. It costs nothing."""
        ...

    async def find_upload(self, name: str, size_bytes: int) -> str | None:
        """The file that an earlier `upload` may have left; ``None`` when there is none."""
        ...

    async def has_upload(self, file_id: str) -> bool:
        """Whether the key sees an uploaded file: it is the same project's then."""
        ...

    async def create(self, path: Path, count: int, file_id: str | None, nonce: str) -> str:
        """Make the batch; from here on it costs. Returns the provider's name for it.

        A `ProviderError` whose `may_be_billed` is false, or that is a `RequestRejectedError` or a
        `RateLimitedError`, says for certain that there is none.
        """
        ...

    async def newest(self) -> list[Listed]:
        """The latest batches of the key's owner, whoever made them: one page of the listing."""
        ...

    async def find(self, since_s: float) -> list[Listed]:
        """All batches of the key's owner that are not older, whoever made them; older ones may be among them.

        Args:
            since_s: by the times of the listing itself.
        """
        ...

    async def look(self, batch_id: str) -> Look:
        """How far a batch is."""
        ...

    async def fetch(self, source: str, sink: IO[bytes], requests: Path) -> None:
        """Write the results of one of `Look.results` into `sink`, as they come.

        Args:
            requests: what was sent, for an endpoint inside this process.
        """
        ...

    async def first_name(self, batch_id: str) -> str | None:
        """The name of the first request in an ended batch's results; ``None`` when none can be seen, which
        says nothing of whose the batch is.
        """
        ...

    def decode(self, line: bytes) -> BatchResult | None:
        """What a line of results says; ``None`` when it is no line of results."""
        ...

    async def cancel(self, batch_id: str) -> None:
        """Ask to end a batch early."""
        ...


class GenerationStore(Protocol):
    """Where generations are kept. All methods are called from one event loop, by many tasks."""

    async def claim(self, stage: Stage, gen_id: str) -> bool:
        """Reserve a generation for this process; ``False`` when another process has reserved it.

        Taken before a call is paid for and kept until the answer is committed or given up. Claims of
        a process that ends, however it ends, are free.
        """
        ...

    async def release(self, stage: Stage, gen_id: str) -> None:
        """Give a claim back."""

    async def make_room(self, stage: Stage, gen_id: str, size_bytes: int) -> None:
        """Set room aside for the answer of a claimed generation, before it is asked for.

        Given back by `commit` and `release`. Where the system cannot set room aside, this does nothing.

        Raises:
            StoreError: there is none: asking would buy what cannot be kept.
        """

    async def find(self, stage: Stage, gen_id: str) -> Generation | None:
        """The generation in the store, good or failed; ``None`` when there is no answer.

        Raises:
            StoreError: a file of it cannot be read.
        """
        ...

    async def load_parsed(self, stage: Stage, gen_id: str) -> str:
        """The parsed text of a generation that is done.

        Raises:
            StoreError: it is not there or cannot be read.
        """
        ...

    async def commit(self, answer: Answer, *, replace: bool = False) -> Generation:
        """Judge an answer, write it and put it in its place, whole or not at all.

        The raw text is on disk before it is parsed. A generation that is there already stays, unless
        `replace` is true: then it is kept aside. Cancelling the caller does not undo a commit.

        Returns:
            The generation that is in the store now: this answer, or another worker's that was there first.

        Raises:
            StoreError: the disk refused; nothing is left in place, and the caller still has the answer.
        """
        ...


class Work(Protocol):
    """What each job asks: prompts, requests, provenance. Jobs are numbered as the membership's rows."""

    def prompt(self, job: int, parent_text: str | None, second_text: str | None = None) -> str:
        """The prompt, from the parent's parsed text (``None`` for drafts).

        Args:
            second_text: that of the second parent, where two texts are compared.

        Raises:
            GenworkerError: it cannot be made.
        """
        ...

    def request(self, job: int, prompt: str) -> CompletionRequest:
        """The call."""
        ...

    def worst_case(self, job: int, request: CompletionRequest) -> Charge:
        """What the call may cost at most."""
        ...

    def unproven_case(self, job: int, request: CompletionRequest) -> Charge | None:
        """What the call may cost where ``max_tokens`` does not bound what is billed.

        ``None`` when the endpoint has shown by an answer what it bills, or when no cap asks.
        """
        ...

    def cost(self, job: int, request: CompletionRequest, completion: Completion) -> Charge | None:
        """What an answer has cost: by list price, or as the endpoint tells, whichever is more.

        ``None`` when neither is known. Learns where an endpoint bills more than was reserved.
        """
        ...

    def take_warnings(self) -> Sequence[str]:
        """What `cost` has learned since the last call that a person should know, in words."""
        ...

    def facts(self, job: int) -> RowFacts:
        """What the metadata say of the job, whatever the answer."""
        ...

    def call_facts(self, job: int, request: CompletionRequest) -> CallFacts:
        """What the metadata say of how it was asked."""
        ...


class Journal(Protocol):
    """Hears what happens, for the record and for people. Must not block and must not raise."""

    def record(self, event: Event) -> None:
        """Something happened."""

    def trouble(self) -> StoreError | None:
        """Why lines could not be written so far, after one more try; ``None`` when all are."""
