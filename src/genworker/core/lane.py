"""One lane, a model of an endpoint: its queue, its limits, how long it must wait, whether it still works."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from genworker.core.batches import BatchSpec
from genworker.core.completion import Completion
from genworker.core.hints import Quantity, Quota
from genworker.core.limits import LaneLimit
from genworker.core.noise import Noise
from genworker.core.rates import StartRate, TokenRate

FIRST_GUESS = {Quantity.TOKENS: 1500.0, Quantity.INPUT: 1000.0, Quantity.OUTPUT: 500.0}
"""Tokens of a call before any has been answered."""
LEARNING = 0.2
PROBE_PAUSE_S, PROBE_PAUSE_MAX_S = 1.0, 16.0


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """A lane: one model of one endpoint.

    Attributes:
        endpoint: index of the endpoint.
        name: for people, such as ``openrouter/gemini_25_pro``.
        fallback: the lane that gets the rows which this one refuses for good; -1 for none.
        rpm: requests per minute, where they are configured for this lane; else they are learned.
        batch: how it is asked in batches; ``None`` for a lane that is asked call by call.
        live: the lane that asks the same call by call; -1 for none.
        is_unknown: nothing has confirmed its key and name: its first calls go out a few at a time.
    """

    endpoint: int
    name: str
    fallback: int = -1
    rpm: float | None = None
    tpm: float | None = None
    batch: BatchSpec | None = None
    live: int = -1
    is_unknown: bool = False

    def without_rates(self) -> LaneSpec:
        """The same lane where its rates are shared out by somebody else."""
        return replace(self, rpm=None, tpm=None)


class Lane:
    """The state of one lane. It decides nothing about jobs.

    Attributes:
        paused_until_s: its endpoint asked for no calls before.
        stopped: why it gets no more calls; ``None`` while it works.
        reserved: jobs that are ready and whose money is reserved; they go first.
        open_jobs: its jobs that have not ended.
        noise: refusals that come whatever the lane does.
        refused_since_s: of the first refusal after the last call that was let in.
    """

    __slots__ = (
        "_crowd",
        "_guesses",
        "_last",
        "limit",
        "noise",
        "open_jobs",
        "opened_s",
        "paused_until_s",
        "probes",
        "queues",
        "ready",
        "ready_children",
        "refusals",
        "refused_since_s",
        "rejected",
        "reserved",
        "spec",
        "starts",
        "stopped",
        "succeeded",
        "tokens",
    )

    def __init__(self, spec: LaneSpec, ceiling: int, depth: int, breaker_calls: int, crowd: int = 1) -> None:
        self.spec = spec
        self.limit = LaneLimit(ceiling, crowd)
        self.starts = StartRate(None if spec.rpm is None else spec.rpm / 60.0, crowd)
        self.noise = Noise()
        self._crowd = crowd
        self.tokens: dict[Quantity, TokenRate] = {}
        if spec.tpm is not None:
            self.tokens[Quantity.TOKENS] = TokenRate(spec.tpm)
        self.queues = [deque[int]() for _ in range(depth)]
        self.reserved = deque[int]()
        self.ready = self.ready_children = 0
        self.open_jobs = 0
        self.paused_until_s = 0.0
        self.stopped: str | None = None
        self.refused_since_s: float | None = None
        self.refusals = 0  # bursts of them since the last call that was let in
        self.opened_s: float | None = None  # since when it only fails
        self.probes = 0  # calls that have failed since then
        self.rejected = 0  # rows refused for good in a row
        self.succeeded = False
        self._last: deque[bool] = deque(maxlen=breaker_calls)
        self._guesses: dict[tuple[Quantity, int], float] = {}

    def found(self) -> dict[str, float]:
        """What the endpoint was found to allow: ``at_once``, and ``per_min`` where a rate is known."""
        limit, rate = self.limit.known, self.starts.known_per_s
        return ({} if limit is None else {"at_once": limit}) | (
            {} if rate is None else {"per_min": 60.0 * rate}
        )

    def ready_at_s(self) -> float:
        """When the next call may start, as far as time goes."""
        at_s = max(self.paused_until_s, self.starts.ready_at_s)
        for rate in self.tokens.values():
            at_s = max(at_s, rate.ready_at_s)
        return at_s

    @property
    def has_room(self) -> bool:
        """Whether another call may be in flight; only one at a time while the lane does nothing but fail."""
        return self.limit.has_room and (self.opened_s is None or self.limit.in_flight == 0)

    @property
    def _is_within(self) -> bool:
        """Whether calls start no faster than what is known to be let in, as far as that is known."""
        return self.starts.learned_per_s is None or self.starts.is_within

    def begin(self, stage: int, now_s: float) -> int:
        """Count a start; returns its round."""
        self.starts.take(now_s)
        if self._is_within or self.noise.is_known:
            self.noise.sent()
        for quantity, rate in self.tokens.items():
            rate.take(self.guess(quantity, stage), now_s)
        return self.limit.admit(stage)

    def not_begun(self, round_: int, stage: int) -> None:
        """A start did not become a call."""
        self.limit.failed(round_, stage)
        self.starts.give_back()
        for quantity, rate in self.tokens.items():
            rate.settle(-self.guess(quantity, stage))

    def guess(self, quantity: Quantity, stage: int) -> float:
        """Tokens that a call of this stage is likely to take."""
        return self._guesses.get((quantity, stage), FIRST_GUESS[quantity])

    def heed(self, quotas: Iterable[Quota], now_s: float) -> None:
        """Take note of announced limits."""
        for quota in quotas:
            if quota.quantity is Quantity.REQUESTS:
                self.starts.announce(quota.per_min / 60.0, quota.left, now_s)
            else:
                rate = self.tokens.get(quota.quantity)
                if rate is None:
                    rate = self.tokens[quota.quantity] = TokenRate(crowd=self._crowd)
                rate.announce(quota.per_min, quota.left, now_s)

    def answered(self, round_: int, stage: int, completion: Completion, now_s: float) -> float:
        """A call brought an answer; returns how many tokens more it took than was counted at its start."""
        self.limit.answered(round_, stage, completion.latency_s, now_s)
        self._last.append(True)
        self.succeeded = True
        self.refused_since_s, self.opened_s = None, None
        self.refusals = self.probes = self.rejected = 0
        if completion.quotas:
            self.heed(completion.quotas, now_s)
        return self._count(stage, completion)

    def _count(self, stage: int, completion: Completion) -> float:
        read, written = completion.usage.input_tokens, completion.usage.output_tokens
        if read is None or written is None:
            return 0.0
        surplus = read + written - self.guess(Quantity.TOKENS, stage)
        for quantity, tokens in (
            (Quantity.INPUT, read),
            (Quantity.OUTPUT, written),
            (Quantity.TOKENS, read + written),
        ):
            guess = self.guess(quantity, stage)
            rate = self.tokens.get(quantity)
            if rate is not None:
                rate.settle(tokens - guess)
            known = (quantity, stage) in self._guesses
            self._guesses[quantity, stage] = guess + (LEARNING if known else 1.0) * (tokens - guess)
        return surplus

    def refused(self, round_: int, stage: int, now_s: float, *, by_rate: bool) -> None:
        """The endpoint asked for fewer calls."""
        if self.refused_since_s is None:
            self.refused_since_s = now_s
        explained = self.limit.explains()
        is_news = not (self.starts.is_refused if by_rate else self.limit.has_heard(round_))
        if is_news and not explained and self._is_within:
            self._doubt()
        if self.noise.refused():
            self.limit.failed(round_, stage)
            return
        if now_s >= self.paused_until_s:  # else it is of the burst that brought the pause
            self.refusals += 1
        self.limit.refused(round_, stage, now_s, paced=by_rate and self.starts.is_learned)
        if by_rate and not explained:
            self.starts.refused(now_s)

    def _doubt(self) -> None:
        """A call was refused within the limits that are known: perhaps they are not why."""
        if not self.noise.is_known and self.noise.lost((self.limit.knee, self.starts.learned_per_s)):
            at_once, per_s = self.noise.before
            self.limit.pardon(at_once)
            self.starts.pardon(per_s)

    def pause(self, until_s: float) -> None:
        """No calls before."""
        self.paused_until_s = max(self.paused_until_s, until_s)

    def out_of_order(self, round_: int, stage: int, now_s: float) -> bool:
        """A call failed for an outage; returns whether the lane does nothing but fail by now."""
        probing = self.opened_s is not None and self.limit.in_flight == 1
        self.limit.failed(round_, stage, trouble=True)
        self._last.append(False)
        if self.opened_s is not None:
            if probing:
                self.probes += 1
                self.pause(now_s + min(PROBE_PAUSE_MAX_S, PROBE_PAUSE_S * 2.0 ** min(self.probes, 16)))
        elif len(self._last) == self._last.maxlen and sum(self._last) <= 0.05 * len(self._last):
            self.opened_s = now_s
            self.probes = 0
            self.pause(now_s + PROBE_PAUSE_S)
        return self.opened_s is not None

    @property
    def watched(self) -> int:
        """How many calls the breaker looks back on."""
        return len(self._last)
