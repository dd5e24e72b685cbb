"""One lane, a model of an endpoint: its queues, and who knows what its endpoint takes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from genworker.core.batches import BatchSpec
from genworker.core.completion import Completion
from genworker.core.controller import Allowances, Belief, Call, Controller
from genworker.core.hints import Quantity


@dataclass(frozen=True, slots=True)
class Wait:
    """A lane that makes no calls for now though it has rows.

    Attributes:
        why: in the words of the last refusal or failure; ``""`` where nobody has told.
        for_s: seconds that it has waited so far.
        left_s: seconds until it asks again; ``None`` while it asks.
    """

    lane: str
    why: str
    for_s: float
    left_s: float | None


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """A lane: one model of one endpoint.

    Attributes:
        endpoint: index of the endpoint.
        name: for people, such as ``openrouter/gemini_25_pro``.
        fallback: the lane that gets the rows which this one refuses for good; -1 for none.
        rpm: requests per minute, where they are configured for this lane; else they are learned.
        tpm: tokens per minute, likewise.
        batch: how it is asked in batches; ``None`` for a lane that is asked call by call.
        live: the lane that asks the same call by call; -1 for none.
        first_calls: calls that may be out in its first second, as nothing has confirmed its key and name; 0
            for a lane that is known.
    """

    endpoint: int
    name: str
    fallback: int = -1
    rpm: float | None = None
    tpm: float | None = None
    batch: BatchSpec | None = None
    live: int = -1
    first_calls: int = 0

    def shared(self, first_calls: int) -> LaneSpec:
        """The same lane where its rates are shared out by somebody else, and so are its first calls."""
        return replace(self, rpm=None, tpm=None, first_calls=first_calls)


class Lane:
    """The state of one lane. It decides nothing about jobs.

    Args:
        number: of this lane in its run.
        controller: of its endpoint; a lane that turns out to be limited apart gets one of its own.
        depth: stages of the run.
        breaker_calls: calls that the breaker looks back on.
        lanes: of its endpoint.

    Attributes:
        in_flight: its calls that are out.
        paused_until_s: somebody else asked for no calls before: a batch that was too much, another worker.
        stopped: why it gets no more calls; ``None`` while it works.
        reserved: jobs that are ready and whose money is reserved; they go first.
        open_jobs: its jobs that have not ended.
        failing: jobs whose calls have failed since the last answer.
        rejected: rows refused for good in a row.
        has_answered: whether it ever did.
    """

    IS_QUICK_S = 10.0
    """A failure that took longer is no answer to the load, but a hang or a lost connection."""
    LEAST_FAILING = 3
    """So many different rows that fail one after the other are not at fault themselves."""

    __slots__ = (
        "_last",
        "allowances",
        "controller",
        "failing",
        "has_answered",
        "in_flight",
        "number",
        "open_jobs",
        "paused_until_s",
        "queues",
        "ready",
        "ready_children",
        "rejected",
        "reserved",
        "spec",
        "stopped",
    )

    def __init__(
        self,
        number: int,
        spec: LaneSpec,
        controller: Controller,
        depth: int,
        breaker_calls: int,
        lanes: int = 1,
    ) -> None:
        self.number = number
        self.spec = spec
        self.controller = controller
        self.allowances = Allowances(spec.rpm, spec.tpm, lanes)
        self.queues = [deque[int]() for _ in range(depth)]
        self.reserved = deque[int]()
        self.ready = self.ready_children = 0
        self.open_jobs = 0
        self.in_flight = 0
        self.paused_until_s = 0.0
        self.stopped: str | None = None
        self.failing: set[int] = set()
        self.rejected = 0
        self.has_answered = False
        self._last: deque[bool] = deque(maxlen=breaker_calls)

    def belief(self) -> Belief:
        """What it believes of its endpoint."""
        return self.controller.belief(self.number)

    def found(self) -> dict[str, float]:
        """What the endpoint was found to allow: ``at_once``, and ``per_min`` where a rate is known."""
        belief = self.belief()
        at_once = [n for n in (belief.at_once, belief.slow_at_once, self.allowances.at_once) if n is not None]
        announced = self.allowances.known_per_min(Quantity.REQUESTS)
        per_min = [n for n in (belief.per_min, announced) if n is not None]
        return ({"at_once": float(min(at_once))} if at_once else {}) | (
            {"per_min": min(per_min)} if per_min else {}
        )

    def ready_at_s(self, now_s: float) -> float:
        """When the next call may start, as far as is known; infinite: not before an event."""
        at_once = self.allowances.at_once
        if at_once is not None and self.in_flight >= at_once:
            return float("inf")
        return max(
            self.controller.ready_at_s(self.number, now_s), self.allowances.ready_at_s, self.paused_until_s
        )

    def pause(self, until_s: float) -> None:
        """No calls before."""
        self.paused_until_s = max(self.paused_until_s, until_s)

    def begin(self, stage: int, now_s: float) -> Call:
        """Count a start; returns its ticket, which the events below want back."""
        self.in_flight += 1
        # A lane that an announced allowance holds back tells the controller nothing about the limit that it
        # looks for.
        is_held = self.allowances.hold(now_s)
        self.allowances.take(stage, now_s)
        return self.controller.begin(self.number, stage, now_s, is_held=is_held)

    def not_begun(self, call: Call) -> None:
        """A start did not become a call."""
        self.allowances.give_back(call.stage)
        self.abandoned(call)

    def abandoned(self, call: Call) -> None:
        """Nobody waits for the call any more."""
        self.in_flight -= 1
        call.controller.cancel(call)

    def answered(self, call: Call, completion: Completion, now_s: float) -> float:
        """A call brought an answer; returns how many tokens more it took than was counted at its start."""
        self.in_flight -= 1
        call.controller.answered(call, completion.latency_s, now_s)
        self._last.append(True)
        self.has_answered = True
        if self.controller.closed_s is None:
            # While the lane is closed one scout's answer is no proof yet: its failing rows still count.
            self.failing.clear()
        self.rejected = 0
        self.allowances.heed(completion.quotas, now_s)
        usage = completion.usage
        return self.allowances.settle(call.stage, usage.input_tokens, usage.output_tokens)

    def took(self, call: Call, now_s: float) -> None:
        """The endpoint took a call and brought no answer, for a reason that is not its load."""
        self.in_flight -= 1
        # Without a latency: how long a refusal takes says nothing about how slow answers are.
        call.controller.answered(call, None, now_s)

    def refused(self, call: Call, job: int, hint_s: float | None, now_s: float) -> None:
        """The endpoint asked for fewer calls."""
        self._fails(call, job, hint_s, now_s, is_outage=False)

    def out_of_order(self, call: Call, job: int, hint_s: float | None, now_s: float) -> bool:
        """A call failed for an outage; returns whether the lane is at fault rather than the row."""
        self._last.append(False)
        # An overloaded server says so at once. What hangs for a minute was lost on the way, and fewer calls
        # would not mend that.
        if now_s - call.at_s <= self.IS_QUICK_S:
            self._fails(call, job, hint_s, now_s, is_outage=True)
        else:
            self.failing.add(job)
            self.abandoned(call)
        # Not "none at all": a gateway in front of a dead server may still answer a call out of its cache.
        only_fails = len(self._last) == self._last.maxlen and sum(self._last) <= 0.05 * len(self._last)
        if only_fails:
            self.controller.shut(self.number, now_s)
        return only_fails or (
            self.controller.closed_s is not None and len(self.failing) >= self.LEAST_FAILING
        )

    def _fails(self, call: Call, job: int, hint_s: float | None, now_s: float, *, is_outage: bool) -> None:
        self.in_flight -= 1
        self.failing.add(job)
        known = call.controller
        known.refused(call, hint_s, now_s, is_outage=is_outage)
        # The controller has seen that this lane is refused while its neighbours are not. So it has a limit
        # of its own, and learns alone from here on.
        if known.apart == self.number:
            known.apart = None
            if self.controller is known:
                self.controller = Controller(known.ceiling)

    def closed_for_s(self, now_s: float) -> float:
        """Seconds since which nothing is let in; 0 while it is open."""
        since_s = self.controller.closed_s
        return 0.0 if since_s is None else now_s - since_s

    @property
    def watched(self) -> int:
        """How many calls the breaker looks back on."""
        return len(self._last)
