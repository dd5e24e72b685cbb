"""What becomes of a row, by what its endpoint answers: both SDKs against the fault server.

The table in docs/outcomes.md is generated here; `python tests/integration/test_outcomes.py` writes it again.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from genworker.project.open import open_project
from genworker.run.engine import RunOptions, run_cohort
from support.llm_server import Fault, LLMServer, Options, Rule
from support.project import COHORT, Row, journal_lines, make_project, membership_rows

PAGE = Path(__file__).resolve().parents[2] / "docs" / "outcomes.md"
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"

FAULTS: tuple[tuple[str, str], ...] = (
    ("400", "400"),
    ("401", "401"),
    ("402", "402"),
    ("403", "403"),
    ("404", "404"),
    ("408", "408"),
    ("409", "409"),
    ("413", "413"),
    ("422", "422"),
    ("429, `Retry-After`", "429@retry-after-ms=0.05"),
    ("429, a wait beyond `--max-wait`", "429@retry-after=86400"),
    ("429 without a hint", "429"),
    ("429 `insufficient_quota`", "insufficient_quota"),
    ("500", "500"),
    ("502", "502"),
    ("503", "503"),
    ("503, `Retry-After`", "503@retry-after-ms=0.05"),
    ("529", "529"),
    ("no connection after the request (reset)", "reset"),
    ("a reset in mid-body", "reset-mid-body"),
    ("an orderly end in mid-body", "cut"),
    ("half a JSON", "half-json"),
    ("an HTML page with status 200", "html"),
    ("an HTML page with status 502", "html=502"),
    ("a redirect", "redirect=9"),
    ("a hang (until `timeout_s`)", "hang"),
    ("a stall in mid-body (until `timeout_s`)", "stall"),
    ("no content block", "no-content"),
    ("an empty content", "empty"),
    ("a content that is null", "null"),
    ("cut off: `finish_reason=length`", "length"),
    ("a content filter", "filter"),
    ("a refusal", "refusal"),
    ("no `usage`", "no-usage"),
    ("a lone surrogate in the text", "surrogate"),
)

SETTINGS = """
default_endpoint = "test"
[endpoints.test]
kind = "{kind}"
base_url = "{url}"
max_concurrency = 1
timeout_s = 0.5
max_tokens = 1000
price = {{ input = 1, output = 2 }}
[retries]
base_s = 0.01
cap_s = 0.02
max_wait_s = 0.6
outage_s = 0
"""


@dataclass(frozen=True)
class Outcome:
    """What a run made of a fault.

    Attributes:
        then: what becomes of the row when every try ends so.
        once: what becomes of it when only the first try does.
        spent: what counts as spent for the first try.
    """

    tries: str
    then: str
    once: str
    spent: str


def rows() -> list[Row]:
    """One draft of `alpha`, which meets the fault, and one of `beta`, which does not."""
    return membership_rows(essays=())


def observe(root: Path, api: str, fault: str) -> Outcome:
    journal, metadata, _ = play(root / "always", api, Rule(Fault.parse(fault), model="vendor/alpha"))
    calls = sum(1 for record in journal if record["event"] == "calling" and record["model_id"] == "alpha")
    stopped = [record["lane"] for record in journal if record["event"] == "lane_stopped"]
    tries = "as long as it lasts" if calls > 7 else str(calls)
    if calls > 1 and stopped:
        tries = "until `--max-wait`"
    then = ("row failed", "lane stopped", "endpoint stopped")[len(stopped)]
    if metadata is not None:
        failure = metadata["failure"]
        then = "**done**" if failure is None else f"kept as *{failure['kind']}*"
    _, later, spent = play(
        root / "once", api, Rule(Fault.parse(fault), model="vendor/alpha", first_attempts=1)
    )
    if later is None:
        once = then
    elif later["failure"] is None:
        once = f"done at try {later['attempts']}"
    else:
        once = f"kept as *{later['failure']['kind']}*"
    return Outcome(tries, then, once, spent)


def play(root: Path, api: str, rule: Rule) -> tuple[list[dict[str, Any]], dict[str, Any] | None, str]:
    """(journal, the faulty row's metadata if any, what its first call counts as)."""
    project = make_project(root, rows())
    with LLMServer(Options(rules=(rule,), words=30)).in_thread() as server:
        url = server.openai_url if api == "openai" else server.anthropic_url
        project.configure(SETTINGS.format(kind=api, url=url))
        result = run_cohort(open_project(project.config, project.data), COHORT, RunOptions())
    journal = list(journal_lines(result.journal_path))
    gen_id = next(row["gen_id"] for row in rows() if row["llm_model_id"] == "alpha")
    path = project.paths.metadata_path("draft", gen_id)
    metadata = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    first = next(
        record
        for record in journal
        if record.get("gen_id") == gen_id and record["event"] in ("answered", "retry", "failed", "stopped")
    )
    if first["event"] == "answered":
        spent = "its usage" if first["cost_usd"] is not None else "worst case"
    else:
        spent = "worst case" if first["may_be_billed"] else "nothing"
    return journal, metadata, spent


HEAD = (
    "| the endpoint answers | tries | when it lasts | when only the first try meets it | counts as spent |",
    "|---|---|---|---|---|",
)
APIS = ("openai", "anthropic")


def lines(root: Path, name: str, fault: str) -> list[str]:
    """What stands in the table about a fault: one line, or one per API where these differ."""
    both = {api: observe(root / api, api, fault) for api in APIS}
    if both["openai"] == both["anthropic"]:
        return [line(name, both["openai"])]
    return [line(f"{name} ({api})", both[api]) for api in APIS]


def table() -> str:
    """The table, as it stands in the docs."""
    with tempfile.TemporaryDirectory() as directory:
        rest = [
            found
            for number, (name, fault) in enumerate(FAULTS)
            for found in lines(Path(directory) / str(number), name, fault)
        ]
    return "\n".join([*HEAD, *rest])


def documented() -> tuple[list[str], dict[str, list[str]]]:
    """The head of the table in the docs, and its lines by the name of their fault, in order."""
    text = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()
    head, found = text.splitlines()[:2], text.splitlines()[2:]
    by_name: dict[str, list[str]] = {}
    for text in found:
        name = text.split(" | ")[0].removeprefix("| ")
        for api in APIS:
            name = name.removesuffix(f" ({api})")
        by_name.setdefault(name, []).append(text)
    return head, by_name


def line(name: str, outcome: Outcome) -> str:
    return f"| {name} | {outcome.tries} | {outcome.then} | {outcome.once} | {outcome.spent} |"


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    yield
    asyncio.set_event_loop(None)


AGAIN = "run: python tests/integration/test_outcomes.py"


def test_the_table_in_the_docs_has_a_line_for_each_fault() -> None:
    head, by_name = documented()
    assert head == list(HEAD), AGAIN
    assert list(by_name) == [name for name, _ in FAULTS], AGAIN


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=[fault for _, fault in FAULTS])
def test_a_line_of_the_table_is_what_happens(tmp_path: Path, name: str, fault: str) -> None:
    assert lines(tmp_path, name, fault) == documented()[1][name], AGAIN


def main() -> None:
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    PAGE.write_text(f"{head}{BEGIN}\n{table()}\n{END}{tail}", encoding="utf-8")
    print(f"{PAGE} written")


if __name__ == "__main__":
    main()
