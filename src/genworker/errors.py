"""Every error that genworker raises on purpose, and the exit code of each.

One root, typed attributes. Errors that a user can cause carry `Fault`s: what is wrong, where, and how
to mend it, so that one message can hold them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any


class ExitCode(IntEnum):
    """What the command line returns to its caller."""

    OK = 0
    FAILURES = 1
    USAGE = 2
    CAPPED = 3
    LOCKED = 4
    WAITING = 5
    SIGHUP = 129
    SIGINT = 130
    SIGTERM = 143


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong in an input.

    Attributes:
        what: the fault, in words.
        where: the file, or the setting's source; ``None`` when the fault is in no file.
        line: line number from 1, as an editor counts.
        column: the column's or the key's name.
        fix: how to mend it.
    """

    what: str
    where: str | None = None
    line: int | None = None
    column: str | None = None
    fix: str | None = None

    def location(self) -> str:
        """``file:line [column]``, as much of it as is known."""
        parts = []
        if self.where is not None:
            parts.append(self.where if self.line is None else f"{self.where}:{self.line}")
        if self.column is not None:
            parts.append(f"[{self.column}]")
        return " ".join(parts)

    def __str__(self) -> str:
        lines = [self.what]
        if self.location():
            lines.append(f"  where: {self.location()}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


ANY = "*"
"""In place of an id: a whole register cannot be read."""


@dataclass(frozen=True, slots=True)
class CatalogFault(Fault):
    """One thing that is wrong in the catalogue, and whom it concerns.

    Attributes:
        concerns: (kind, id) of the one entry that it is about, such as ``("draft", "weave-v1")`` or
            ``("model", "heron")``, or of all of a kind, ``("draft", ANY)``: cohorts that do not use it are
            not hindered. ``None``: everybody.
    """

    concerns: tuple[str, str] | None = None

    def __str__(self) -> str:
        return Fault.__str__(self)


class GenworkerError(Exception):
    """The root of everything that genworker raises on purpose."""

    exit_code = ExitCode.USAGE


class FaultyInputError(GenworkerError):
    """An input is refused before anything is paid for; `faults` has every reason at once."""

    SHOWN = 50
    """Faults printed; the rest is counted."""

    def __init__(self, faults: Sequence[Fault], *, title: str | None = None) -> None:
        self.faults = tuple(faults)
        self.title = title
        super().__init__(self._message())

    def _message(self) -> str:
        shown = [str(fault) for fault in self.faults[: self.SHOWN]]
        if len(self.faults) > self.SHOWN:
            shown.append(f"… and {len(self.faults) - self.SHOWN} more faults")
        if self.title is not None and len(self.faults) > 1:
            shown.insert(0, f"{self.title} ({len(self.faults)} faults)")
        return "\n".join(shown)


class ConfigError(FaultyInputError):
    """The configuration is wrong."""


class CatalogError(FaultyInputError):
    """The catalogue (`1_raw`) is wrong: templates, models, concepts, parsers."""


class MembershipError(FaultyInputError):
    """A cohort's ``membership.csv`` is wrong."""


class UsageError(FaultyInputError):
    """The command line asks for something that does not exist or cannot be."""


class StoreError(GenworkerError):
    """Reading or writing below the data root failed; `path` says where."""

    def __init__(self, message: str, *, path: str, errno: int | None = None) -> None:
        self.path = path
        self.errno = errno
        super().__init__(message)


class CrewError(GenworkerError):
    """Workers cannot be started, or end again and again."""

    exit_code = ExitCode.FAILURES


class ServeError(GenworkerError):
    """No server of an endpoint's `serve` could be brought to answer."""


class LockedError(GenworkerError):
    """Another worker holds the cohort."""

    exit_code = ExitCode.LOCKED


class Scope(Enum):
    """What a refusal speaks about."""

    ROW = "row"
    LANE = "lane"
    """One model of one endpoint."""
    ENDPOINT = "endpoint"


class ProviderError(GenworkerError):
    """A call brought no answer. Adapters translate once, by exception type and status, never by text.

    Attributes:
        status: the HTTP status, when there was one.
        request_id: the endpoint's name for the call, when it gave one.
        may_be_billed: whether the endpoint may charge for the call all the same.
        quotas: limits that the endpoint announced along with it (`genworker.core.hints.Quota`).
        partial: the beginning of an answer that came all the same (`genworker.core.completion.Completion`):
            it is kept when no better one comes. ``None`` when nothing came.
    """

    exit_code = ExitCode.FAILURES

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        may_be_billed: bool = False,
        quotas: tuple[Any, ...] = (),
        partial: Any = None,
    ) -> None:
        self.message = message
        self.partial = partial
        self.quotas = quotas
        self.status = status
        self.request_id = request_id
        self.may_be_billed = may_be_billed
        super().__init__(message)

    @property
    def was_sent(self) -> bool:
        """Whether the endpoint may have seen the call; not when the way to it was closed."""
        return self.status is not None or self.may_be_billed


class RateLimitedError(ProviderError):
    """The endpoint asks for fewer calls.

    Attributes:
        retry_after_s: seconds that it asks to wait; ``None`` when it does not say.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, **details: Any) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message, **details)


class ProviderUnavailableError(ProviderError):
    """The endpoint or the way to it is out of order for now: 5xx, network, timeout.

    Attributes:
        retry_after_s: seconds that it asks to wait; ``None`` when it does not say.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, **details: Any) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message, **details)


class MalformedAnswerError(ProviderError):
    """Something came back that is not what the API promises: half a JSON, a page, far too much.

    Attributes:
        body: what came, as text, to be kept: it may have been paid for.
        retryable: whether asking again may help.
    """

    def __init__(self, message: str, *, body: str, retryable: bool = True, **details: Any) -> None:
        self.body = body
        self.retryable = retryable
        super().__init__(message, may_be_billed=True, **details)


class RequestRejectedError(ProviderError):
    """The endpoint will not answer this call however often it is asked.

    Attributes:
        scope: whom it concerns.
        is_sure: whether its words say so (an empty purse, an unknown model). A bare status may also be
            about one input, so it stops a lane or an endpoint only when nothing has been answered lately.
        about_input: whether it speaks of this very prompt (moderated, too long): its neighbours learn
            nothing from it.
    """

    def __init__(
        self,
        message: str,
        *,
        scope: Scope = Scope.ROW,
        is_sure: bool = False,
        about_input: bool = False,
        **details: Any,
    ) -> None:
        self.scope = scope
        self.is_sure = is_sure
        self.about_input = about_input
        super().__init__(message, **details)


class TemplateError(GenworkerError):
    """A template cannot be read or rendered.

    Attributes:
        line: the template's line, when it is known.
    """

    def __init__(self, message: str, *, line: int | None = None) -> None:
        self.line = line
        super().__init__(message)


class ParseFailedError(GenworkerError):
    """A parser found no usable text or score in a model's answer; the message says why."""


def exit_code_for(error: BaseException) -> ExitCode:
    """The one mapping from errors to exit codes."""
    if isinstance(error, GenworkerError):
        return error.exit_code
    return ExitCode.FAILURES
