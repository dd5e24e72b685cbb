"""One endpoint of several servers: who gets a call, and what one of them may cost the others."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from genworker.core.budget import NOTHING
from genworker.core.completion import Completion, FinishReason, Usage
from genworker.core.lane import LaneSpec, Server
from genworker.core.scheduler import EndpointSpec, GiveUp, JobState, Retry, RetryPolicy, Scheduler, Start
from genworker.errors import (
    ProviderUnavailableError,
    RateLimitedError,
    RequestRejectedError,
    Scope,
)

NO_WAY = ProviderUnavailableError("no response: cannot connect")
BROKE = ProviderUnavailableError("no response: closed", may_be_billed=True)


def scheduler(
    jobs: int, servers: Sequence[str] = ("a", "b", "c"), concurrency: int = 64, rpm: float | None = None
) -> Scheduler:
    return Scheduler(
        stages=[0] * jobs,
        parents=array("i", [-1] * jobs),
        lanes=array("h", [0] * jobs),
        selected=b"\x01" * jobs,
        lane_specs=[LaneSpec(0, "one")],
        endpoints=[EndpointSpec(concurrency, rpm=rpm, servers=servers)],
        max_concurrency=concurrency,
        retry=RetryPolicy(outage_s=30.0),
    )


def answer() -> Completion:
    return Completion("text", FinishReason.STOP, Usage(5, 5), 1.0)


def start(subject: Scheduler, now_s: float) -> Start:
    begun = subject.next_start(now_s)
    assert begun is not None
    assert subject.clear(begun.job, NOTHING, now_s)
    return begun


def finish(subject: Scheduler, begun: Start, now_s: float) -> None:
    subject.answered(begun.job, answer(), now_s)
    subject.committed(begun.job)


def test_a_call_goes_to_the_server_with_the_fewest_out_and_the_longest_idle_of_those() -> None:
    subject = scheduler(20)
    first = [start(subject, 0.1 * number) for number in range(6)]
    assert [begun.server for begun in first] == [0, 1, 2, 0, 1, 2]
    finish(subject, first[1], 1.0)
    finish(subject, first[4], 1.0)
    assert [start(subject, 1.1).server, start(subject, 1.2).server] == [1, 1]
    alone = scheduler(20)
    seen = []
    for number in range(6):  # one call at a time: nobody is asked twice in a row
        begun = start(alone, float(number))
        seen.append(begun.server)
        finish(alone, begun, number + 0.5)
    assert seen == [0, 1, 2, 0, 1, 2]


def test_a_call_that_was_never_sent_goes_elsewhere_at_once_and_is_no_try() -> None:
    subject = scheduler(1)
    for number in range(3):
        begun = start(subject, float(number))
        decision = subject.refused(begun.job, NO_WAY, float(number))
        assert isinstance(decision, Retry)
        assert decision.at_s == number
        assert begun.server == number
    # All are out. However often nobody can be reached, the row's five tries are all left.
    tried = []
    now_s = 2.0
    while now_s < 20.0:
        again = subject.next_start(now_s)
        if again is None:
            now_s += 0.25
            continue
        assert subject.clear(again.job, NOTHING, now_s)
        tried.append((again.server, now_s))
        assert isinstance(subject.refused(again.job, NO_WAY, now_s), Retry)
    assert [at for server, at in tried if server == 0] == [2.0, 4.0, 8.0, 16.0]
    begun = start(subject, 40.0)
    finish(subject, begun, 41.0)
    assert subject.state(0) is JobState.DONE


def test_the_pause_of_a_dead_server_doubles_and_calls_that_began_with_the_first_do_not_count() -> None:
    server = Server("a")
    assert server.fail(0.0)
    assert not server.fail(0.5)  # begun with the one that failed first
    assert server.ready_at_s() == 1.0
    server.fail(1.5)
    assert server.ready_at_s() == 3.5
    server.fail(3.5)
    assert server.ready_at_s() == 7.5
    server.in_flight = 1
    assert server.ready_at_s() == float("inf"), "one scout at a time"
    server.in_flight = 0
    server.mend()
    assert server.ready_at_s() == 0.0
    for at_s in range(0, 4000, 100):
        server.fail(float(at_s))
    assert server.ready_at_s() - 3900 == Server.MOST_PAUSE_S


def test_the_lane_is_stopped_when_nobody_has_answered_for_long() -> None:
    subject = scheduler(4, ("a", "b"))
    now_s, decision = 0.0, None
    while now_s < 200.0 and not isinstance(decision, GiveUp):
        begun = subject.next_start(now_s)
        if begun is None:
            now_s += 0.5
            continue
        subject.clear(begun.job, NOTHING, now_s)
        decision = subject.refused(begun.job, NO_WAY, now_s)
    assert isinstance(decision, GiveUp)
    assert "none of its servers can be reached" in decision.reason
    assert 30.0 <= now_s < 65.0
    assert subject.finished


def test_a_server_that_breaks_off_is_closed_and_the_others_are_not() -> None:
    subject = scheduler(400, ("a", "b"))
    now_s, out, seen = 0.0, [], []
    while not subject.finished and now_s < 100.0:
        while (begun := subject.next_start(now_s)) is not None:
            assert subject.clear(begun.job, NOTHING, now_s)
            out.append((now_s + 0.3, begun))
            seen.append((now_s, begun.server))
        while out and out[0][0] <= now_s:
            _, begun = out.pop(0)
            if begun.server == 0 and now_s > 1.0:
                subject.refused(begun.job, BROKE, now_s)
            else:
                finish(subject, begun, now_s)
        now_s += 0.01
    assert subject.finished
    assert all(state == JobState.DONE for state in subject.states)
    late = [server for at_s, server in seen if at_s > 3.0]
    assert not late or late.count(0) < 0.2 * len(late)
    changes = {name for name, _ in subject.take_changes()}
    assert "one at a" in changes
    assert "one at b" not in changes
    assert now_s < 12.0, "half as fast as two servers are, not slower"


def test_a_refusal_for_load_slows_down_its_own_server_only() -> None:
    subject = scheduler(60, ("a", "b"))
    for number in range(12):
        begun = start(subject, 0.1 * number)
        if begun.server == 0:
            subject.refused(begun.job, RateLimitedError("slow down", status=429), 0.1 * number + 0.01)
        else:
            finish(subject, begun, 0.1 * number + 0.05)
    members = subject.lanes()[0].members
    assert members[0].controller.closed_s is not None
    assert members[1].controller.closed_s is None
    assert subject.paused_lanes(1.3) == [], "the lane is open as long as one of its servers is"


def test_a_server_with_another_key_or_model_does_not_stop_the_lane() -> None:
    subject = scheduler(10, ("a", "b"))
    finish(subject, start(subject, 0.0), 0.1)
    begun = start(subject, 0.2)
    assert begun.server == 1
    no_model = RequestRejectedError("no such model", status=404, scope=Scope.LANE, is_sure=True)
    assert isinstance(subject.refused(begun.job, no_model, 0.3), Retry)
    assert [start(subject, 0.4 + 0.1 * n).server for n in range(4)] == [0] * 4
    assert subject.lanes()[0].stopped is None


def test_one_that_joins_gets_calls_and_one_that_leaves_ends_those_that_it_has() -> None:
    subject = scheduler(30, ("a",))
    begun = start(subject, 0.0)
    subject.admit(0, 1, "b", is_in=True)
    assert [start(subject, 0.1).server, start(subject, 0.2).server] == [1, 0]
    subject.admit(0, 0, "a", is_in=False)
    assert [start(subject, 0.3 + 0.1 * n).server for n in range(3)] == [1, 1, 1]
    finish(subject, begun, 1.0)
    assert subject.state(begun.job) is JobState.DONE
    assert not subject.waits_for_servers
    subject.admit(0, 1, "b", is_in=False)
    assert subject.next_start(2.0) is None
    assert subject.waits_for_servers
    subject.admit(0, 0, "a", is_in=True)
    assert start(subject, 2.1).server == 0


def test_configured_limits_are_those_of_all_servers_together() -> None:
    subject = scheduler(400, ("a", "b", "c"), concurrency=5)
    assert len([1 for _ in range(20) if subject.next_start(10.0) is not None]) <= 5
    paced = scheduler(400, ("a", "b", "c"), rpm=600)
    begun = 0
    for step in range(1000):
        now_s = step * 0.01
        while (one := paced.next_start(now_s)) is not None:
            begun += 1
            finish(paced, one, now_s) if paced.clear(one.job, NOTHING, now_s) else None
    assert 95 <= begun <= 101, "ten a second over ten seconds"
