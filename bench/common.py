"""What the benchmarks share: the machine's description, measured subprocesses, projects, tables."""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
sys.path.insert(0, str(ROOT / "tests"))

from genworker.core.ids import (  # noqa: E402 (the path above comes first)
    combo_id,
    draft_task_id,
    essay_task_id,
    evaluation_task_id,
    gen_id,
    replicate_salt,
)
from genworker.core.stages import Stage  # noqa: E402

COHORT = "bench"
CONCEPTS = ("tides", "locks")
COMBO = combo_id(CONCEPTS, "paragraph", 2)
HEADER = (
    "stage",
    "gen_id",
    "cohort_id",
    "parent_gen_id",
    "combo_id",
    "template_id",
    "llm_model_id",
    "replicate",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One process, as the operating system accounts for it.

    Attributes:
        cpu_s: user and system time, in seconds.
        peak_rss_mb: largest resident size, in megabytes of 10⁶ bytes.
    """

    wall_s: float
    cpu_s: float
    peak_rss_mb: float
    exit_code: int
    output: str


def measure(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    cpu: int | None = None,
    env: Mapping[str, str] | None = None,
    limit_s: float = 3600,
) -> Measured:
    """Run a command to its end, at most `limit_s`; `cpu` pins it to one processor where the system can.

    Its children count as far as it waited for them: their CPU time is added, the peak is the largest's.
    """
    began = time.perf_counter()
    pin = None
    if cpu is not None and hasattr(os, "sched_setaffinity"):

        def pin() -> None:
            os.sched_setaffinity(0, {cpu})

    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdout=out, stderr=subprocess.STDOUT, preexec_fn=pin
        )
        watch = threading.Timer(limit_s, process.kill)
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        watch.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        output = out.read()
    scale = 1 if sys.platform == "darwin" else 1024
    return Measured(
        time.perf_counter() - began,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * scale / 1e6,
        process.returncode,
        output,
    )


def genworker(*arguments: str) -> list[str]:
    """The command line of the genworker under test."""
    return [sys.executable, "-m", "genworker", *arguments]


def server_cpu() -> int | None:
    """The processor for the server, so that it does not take the client's; ``None`` with only one."""
    return 1 if (os.cpu_count() or 1) > 1 else None


@contextmanager
def server(*arguments: str) -> Iterator[Any]:
    """The tests' local server as a process of its own."""
    from support.llm_server import spawn

    with spawn(*arguments) as remote:
        if server_cpu() is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(remote.pid, {1})
        yield remote


def lineages(count: int, *, evaluations: int = 1) -> Iterator[tuple[str, ...]]:
    """Membership rows of `count` lineages, stage by stage: a draft, its essay, and evaluations of it."""
    drafts, essays = [], []
    for number in range(1, count + 1):
        task = draft_task_id(COMBO, "note", "m1")
        drafts.append(gen_id(Stage.DRAFT, task, COHORT, replicate_salt(number)))
        yield ("draft", drafts[-1], COHORT, "", COMBO, "note", "m1", str(number))
    for number, draft in enumerate(drafts, start=1):
        task = essay_task_id(draft_task_id(COMBO, "note", "m1"), "rewrite")
        essays.append(gen_id(Stage.ESSAY, task, COHORT, f"rep{number}-1"))
        yield ("essay", essays[-1], COHORT, draft, COMBO, "rewrite", "m1", str(number))
    for essay in essays:
        for number in range(1, evaluations + 1):
            task = evaluation_task_id(essay, "clarity", "m1")
            gen = gen_id(Stage.EVALUATION, task, COHORT, replicate_salt(number))
            yield ("evaluation", gen, COHORT, essay, COMBO, "clarity", "m1", str(number))


def drafts_only(count: int) -> Iterator[tuple[str, ...]]:
    """Membership rows of `count` drafts."""
    task = draft_task_id(COMBO, "note", "m1")
    for number in range(1, count + 1):
        gen = gen_id(Stage.DRAFT, task, COHORT, replicate_salt(number))
        yield ("draft", gen, COHORT, "", COMBO, "note", "m1", str(number))


def write_project(
    root: Path, rows: Iterator[tuple[str, ...]], url: str, *, in_flight: int, kind: str = "openai"
) -> int:
    """A project whose one model is served by `url`; returns its number of rows."""
    # The server tells replicates apart by the seed; Messages has none.
    own = "seed = true\n" if kind == "openai" else ""
    raw = root / "data" / "1_raw"
    files = {
        "concepts_metadata.csv": "concept_id,name,active\ntides,Tides,True\nlocks,Locks,True\n",
        "concepts/descriptions-paragraph/tides.txt": "The sea comes and goes. " * 20,
        "concepts/descriptions-paragraph/locks.txt": "A lock lifts a boat. " * 20,
        "draft_templates.csv": "template_id,parser,generator,active\nnote,,llm,True\n",
        "essay_templates.csv": "template_id,parser,generator,active\nrewrite,,llm,True\n",
        "evaluation_templates.csv": "template_id,parser,generator,active\nclarity,in_last_line,llm,True\n",
        "llm_models.csv": "id,model,for_generation,for_evaluation\nm1,bench/m1,True,True\n",
        "templates/draft/note.txt": "Write.\n"
        "{% for c in concepts %}{{ c.name }}: {{ c.content }}\n{% endfor %}",
        "templates/essay/rewrite.txt": "Rewrite this:\n{{ draft_block }}",
        "templates/evaluation/clarity.txt": "Judge this, end with SCORE: N\n{{ response }}",
        "../combo_mappings.csv": "combo_id,version,concept_id,description_level,k_max,created_at\n"
        + "".join(f"{COMBO},v1,{name},paragraph,2,2026-01-01\n" for name in CONCEPTS),
        "../../config/genworker.toml": 'default_endpoint = "bench"\n'
        f"max_concurrency = {in_flight}\n"
        f'[endpoints.bench]\nkind = "{kind}"\nbase_url = "{url}"\nmax_concurrency = {in_flight}\n{own}',
    }
    for name, text in files.items():
        path = (raw / name).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    path = root / "data" / "cohorts" / COHORT / "membership.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADER)
        for row in rows:
            writer.writerow(row)
            count += 1
    return count


def seconds_of_calls(root: Path) -> float:
    """Of a project's one run: from the first call to the last commit, as its journal says."""
    (journal,) = (root / "data" / ".genworker" / "runs").glob("*.jsonl")
    first = last = None
    for line in journal.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["event"] == "calling" and first is None:
            first = record["time"]
        elif record["event"] == "committed":
            last = record["time"]
    return (datetime.fromisoformat(str(last)) - datetime.fromisoformat(str(first))).total_seconds()


def workplace(name: str) -> Path:
    """A new directory below ``build/bench``, or below ``BENCH_DIR``: the store's speed is that disk's.

    It stays: for minutes after a large removal ext4 makes files five to fifteen times slower, and the next
    figures would be wrong. ``make clean`` removes ``build``.
    """
    base = Path(os.environ.get("BENCH_DIR", ROOT / "build" / "bench"))
    base.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base))


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    memory = None
    with suppress(ValueError, OSError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "memory_bytes": memory,
    }


def publish(name: str, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], record: Any) -> None:
    """Print a table and write the record beside the machine's description."""
    from genworker.cli.tables import table

    print(f"\n{title}\n")
    for line in table(header, rows, right=tuple(range(1, len(header)))):
        print(f"  {line}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "results": record}, indent=2) + "\n", encoding="utf-8")
    print(f"\n  {path.relative_to(ROOT)}")
