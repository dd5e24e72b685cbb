"""An index over everything that cohorts plan and the store holds, for search, filters and sorting.

It lies below ``.genworker/view`` and can be thrown away at any time: it is built from memberships and
generations, and brought up to date from the run journals. The files stay the truth; a page reads them for
what it shows.

One thread writes; any number of threads may read. Nothing here takes a lock of the store, so a worker is
never hindered.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genworker.core.generation import Generation
from genworker.core.parsers import read_choice, read_score
from genworker.core.stages import STAGES, Stage
from genworker.paths import PARSED_FILE, RAW_FILE, Paths
from genworker.store.catalog import list_cohorts, stream_membership
from genworker.store.reading import Metadata, json_object, read_bytes

FORMAT = 2
"""Of the database; another one is thrown away and built anew."""
BATCH = 500
"""Generations that are read, and then written, together."""
MAX_TEXT_BYTES = 1_000_000
"""Of one text, what can be searched: a longer one is found by its beginning."""

MISSING, DONE, FAILED, BLOCKED = "missing", "done", "failed", "blocked"
STATES = (
    DONE,
    "unparseable",
    "truncated",
    "content_filtered",
    "empty",
    "malformed",
    "too_short",
    BLOCKED,
    MISSING,
)
"""Words for what became of a row; a kind of failure that is not listed stands under its own word."""

_SCHEMA = f"""
PRAGMA user_version = {FORMAT};
CREATE TABLE cohort (id INTEGER PRIMARY KEY, name TEXT UNIQUE, stamp TEXT);
CREATE TABLE word (id INTEGER PRIMARY KEY, text TEXT UNIQUE);
CREATE TABLE row (
    id INTEGER PRIMARY KEY,
    cohort INTEGER NOT NULL,
    stage INTEGER NOT NULL,
    gen_id TEXT NOT NULL,
    parent TEXT,
    other TEXT,
    combo INTEGER, template INTEGER, model INTEGER,
    author INTEGER, draft_template INTEGER, essay_template INTEGER,
    replicate INTEGER NOT NULL,
    state INTEGER NOT NULL,
    score REAL, cost REAL, tokens INTEGER, chars INTEGER,
    run INTEGER, finished TEXT, reason TEXT,
    doc INTEGER, choice TEXT
);
CREATE TABLE journal (name TEXT PRIMARY KEY, offset INTEGER NOT NULL);
CREATE TABLE todo (id INTEGER PRIMARY KEY);
CREATE VIRTUAL TABLE text USING fts5 (body, content='', columnsize=0, tokenize='unicode61');
"""
_INDEXES = """
CREATE INDEX IF NOT EXISTS row_by_id ON row (cohort, stage, gen_id);
CREATE INDEX IF NOT EXISTS row_by_gen ON row (gen_id);
CREATE INDEX IF NOT EXISTS row_by_parent ON row (cohort, parent);
CREATE INDEX IF NOT EXISTS row_by_other ON row (cohort, other) WHERE other IS NOT NULL;
CREATE INDEX IF NOT EXISTS row_by_state ON row (cohort, stage, state);
CREATE INDEX IF NOT EXISTS row_by_score ON row (cohort, score) WHERE score IS NOT NULL;
CREATE INDEX IF NOT EXISTS row_by_doc ON row (doc) WHERE doc IS NOT NULL;
CREATE INDEX IF NOT EXISTS row_by_finished ON row (cohort, finished) WHERE finished IS NOT NULL;
CREATE INDEX IF NOT EXISTS row_by_cost ON row (cohort, cost) WHERE cost IS NOT NULL;
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store says of one generation, as the index keeps it.

    Attributes:
        state: one of `STATES`, or another kind of failure.
        cost_usd: ``None`` when unknown.
        tokens: of prompt and answer together.
        text: what can be searched: the text of a draft or essay, the judge's words of an evaluation.
        choice: of an evaluation that compares two essays, ``first``, ``second`` or ``tie``.
    """

    state: str
    score: float | None = None
    cost_usd: float | None = None
    tokens: int | None = None
    run_id: str | None = None
    finished_at: str | None = None
    reason: str | None = None
    text: str = ""
    choice: str | None = None


def read_facts(directory: str, stage: Stage, gen_id: str) -> Facts:
    """Read what the index wants of one generation's directory; what is not there is *missing*.

    Plain system calls and two files where two are enough: a store has a million of them.
    """
    metadata = Metadata(directory)
    parsed = read_bytes(f"{directory}/{PARSED_FILE}").decode("utf-8", "replace")
    raw = ""
    if stage.is_scored or not parsed.strip():
        raw = read_bytes(f"{directory}/{RAW_FILE}")[:MAX_TEXT_BYTES].decode("utf-8", "replace")
    generation = Generation(
        stage,
        gen_id,
        None,
        raw,
        parsed or None,
        metadata.record,
        tuple(metadata.beside),
        has_metadata=metadata.is_there,
    )
    said = generation.facts
    usage, cost = said.usage, said.cost_usd
    tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
    state, reason, score, choice = DONE, None, None, None
    if not generation.is_done:
        failure = generation.failure
        if failure is None and not raw and not parsed:
            return Facts(MISSING)
        state = "unparseable" if failure is None else failure.kind.value
        reason = "the answer has not been parsed" if failure is None else failure.message
    elif said.second_parent_gen_id is not None:
        choice = read_choice(parsed)
        if choice is None:
            state, reason = "unparseable", "parsed.txt is no choice: A, B or tie"
    elif stage.is_scored:
        score = read_score(parsed)
        if score is None:
            state, reason = "unparseable", "parsed.txt is no score from 0 to 10"
    return Facts(
        state,
        score,
        None if cost is None else float(cost),
        tokens or None,
        said.run_id,
        said.finished_at,
        reason,
        (raw or parsed) if stage.is_scored else (parsed or raw),
        choice,
    )


class Progress:
    """How far the index is, for whoever shows it. `done` of `total` generations have been looked at."""

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self.is_building = False
        self.trouble: str | None = None


class Index:
    """The database of one data root, opened for writing by this process.

    Args:
        cohorts: only these; ``None`` for all that have a membership.
        path: the database; below ``.genworker/view`` unless given.
    """

    def __init__(self, paths: Paths, cohorts: Sequence[str] | None = None, path: Path | None = None) -> None:
        self.paths = paths
        self.path = path or paths.private_dir / "view" / "index.sqlite"
        self.progress = Progress()
        self._wanted = cohorts
        self._words: dict[str, int] = {}
        self._next_doc = 1
        self._directories = {stage: str(paths.stage_dir(stage)) for stage in STAGES}
        self._stopping = threading.Event()
        self._database = self._open()

    # Opening

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            database = self._connect()
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version == FORMAT:
                database.execute("SELECT count(*) FROM cohort")
                self._words = dict(database.execute("SELECT text, id FROM word"))
                self._next_doc = (database.execute("SELECT max(doc) FROM row").fetchone()[0] or 0) + 1
                return database
            database.close()
        except sqlite3.DatabaseError:
            pass  # not a database, or half of one: it is built anew
        self._remove_files()
        database = self._connect()
        database.executescript(_SCHEMA)
        return database

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self.path.chmod(0o600)
        # It can be built anew, so a power cut may spoil it; readers go on beside the writer.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -32000")
        return database

    def _remove_files(self) -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(OSError):
                self.path.with_name(self.path.name + suffix).unlink()

    def reader(self) -> sqlite3.Connection:
        """A connection of its own for reading; usable in one thread at a time."""
        database = sqlite3.connect(
            f"file:{self.path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        database.execute("PRAGMA cache_size = -64000")
        database.execute("PRAGMA query_only = ON")
        database.row_factory = sqlite3.Row
        return database

    def close(self) -> None:
        """Stop what is being built and close the database."""
        self._stopping.set()
        self._database.close()

    def stop(self) -> None:
        """Ask `update` to return soon."""
        self._stopping.set()

    # Building

    def update(self, *, full: bool = True) -> int:
        """Bring the index up to date. Blocks; called from one thread.

        Args:
            full: list the stage directories as well, for what other tools have put there or taken away.

        Returns:
            How many generations were read.
        """
        self.progress.is_building = True
        try:
            names = list_cohorts(self.paths)
            if self._wanted is not None:
                names = [name for name in names if name in set(self._wanted)]
            changed = self._journal_ids()
            fresh = False
            for name in names:
                fresh = self._read_membership(name) or fresh
            self._drop_cohorts(names)
            self._database.executescript(_INDEXES)
            read = self._read_store(changed, full=full or fresh)
            if read or fresh:
                self._block()
            return read
        finally:
            self.progress.is_building = False

    def _read_membership(self, name: str) -> bool:
        """Rows of a cohort whose membership is new or has changed; what is known of others stays."""
        path = self.paths.cohort_membership_csv(name)
        try:
            status = path.stat()
        except OSError:
            return False
        stamp = f"{status.st_mtime_ns}:{status.st_size}:{status.st_ino}"
        database = self._database
        held = database.execute("SELECT id, stamp FROM cohort WHERE name = ?", (name,)).fetchone()
        if held is not None and held[1] == stamp:
            return False
        database.execute("BEGIN")
        try:
            if held is None:
                number = database.execute("INSERT INTO cohort (name) VALUES (?)", (name,)).lastrowid
            else:
                number = held[0]
                database.execute(
                    "CREATE TEMP TABLE old AS SELECT stage, gen_id, state, score, cost, tokens, chars, run, "
                    "finished, reason, doc, choice FROM row WHERE cohort = ?",
                    (number,),
                )
                database.execute("DELETE FROM row WHERE cohort = ?", (number,))
            missing = self._word(MISSING)
            database.executemany(
                "INSERT INTO row (cohort, stage, gen_id, parent, other, combo, template, model, replicate, "
                "state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        number,
                        row.stage.order,
                        row.gen_id,
                        row.parent_gen_id,
                        row.second_parent_gen_id,
                        self._word(row.combo_id),
                        self._word(row.template_id),
                        None if row.llm_model_id is None else self._word(row.llm_model_id),
                        row.replicate,
                        missing,
                    )
                    for row in self._rows(name)
                ),
            )
            if held is not None:
                database.execute(
                    "UPDATE row SET state = old.state, score = old.score, cost = old.cost, "
                    "tokens = old.tokens, chars = old.chars, run = old.run, finished = old.finished, "
                    "reason = old.reason, doc = old.doc, choice = old.choice "
                    "FROM old WHERE row.cohort = ? AND row.stage = old.stage AND row.gen_id = old.gen_id",
                    (number,),
                )
                database.execute("DROP TABLE old")
            database.execute("CREATE INDEX IF NOT EXISTS row_by_id ON row (cohort, stage, gen_id)")
            self._link(number)
            database.execute("UPDATE cohort SET stamp = ? WHERE id = ?", (stamp, number))
            database.execute("COMMIT")
        except BaseException:
            database.execute("ROLLBACK")
            self._words = dict(database.execute("SELECT text, id FROM word"))
            raise
        return True

    def _rows(self, name: str) -> Iterator[Any]:
        for count, row in enumerate(stream_membership(self.paths, name)):
            if count % BATCH == 0 and self._stopping.is_set():
                raise InterruptedError("the view is closing")
            yield row

    def _link(self, cohort: int | None) -> None:
        """Lineage: each row knows its author and the templates above it."""
        execute = self._database.execute
        execute(
            "UPDATE row SET author = model, draft_template = template, essay_template = NULL "
            "WHERE cohort = ? AND stage = 0",
            (cohort,),
        )
        for stage in STAGES[1:]:
            own = "row.template" if stage.order == 1 else "above.essay_template"
            author = "coalesce(row.model, above.model)" if stage.inherits_model else "above.author"
            model = "coalesce(row.model, above.model)" if stage.inherits_model else "row.model"
            execute(
                f"UPDATE row SET author = {author}, model = {model}, draft_template = above.draft_template, "
                f"essay_template = {own} FROM row AS above "
                "WHERE row.cohort = ? AND row.stage = ? AND above.cohort = row.cohort "
                "AND above.stage = row.stage - 1 AND above.gen_id = row.parent",
                (cohort, stage.order),
            )

    def _drop_cohorts(self, names: Iterable[str]) -> None:
        wanted = set(names)
        for number, name in self._database.execute("SELECT id, name FROM cohort").fetchall():
            if name not in wanted:
                self._database.execute("DELETE FROM row WHERE cohort = ?", (number,))
                self._database.execute("DELETE FROM cohort WHERE id = ?", (number,))

    # What changed

    def _journal_ids(self) -> set[tuple[int, str]]:
        """(stage, gen_id) of what runs have committed since the last look at their journals."""
        found: set[tuple[int, str]] = set()
        orders = {stage.value: stage.order for stage in STAGES}
        try:
            journals = [entry for entry in os.scandir(self.paths.runs_dir) if entry.name.endswith(".jsonl")]
        except OSError:
            return found
        known = dict(self._database.execute("SELECT name, offset FROM journal"))
        for entry in journals:
            offset = known.get(entry.name, 0)
            try:
                size = entry.stat().st_size
                if size == offset:
                    continue
                with open(entry.path, "rb") as stream:  # noqa: PTH123 (a scan's entry has a string)
                    if size < offset:
                        offset = 0
                    stream.seek(offset)
                    for line in stream:
                        if not line.endswith(b"\n"):
                            break  # it is being written
                        offset += len(line)
                        if b'"committed"' not in line and b'"salvaged"' not in line:
                            continue
                        record = json_object(line)
                        order = orders.get(str(record.get("stage")))
                        if order is not None and isinstance(record.get("gen_id"), str):
                            found.add((order, record["gen_id"]))
            except OSError:
                continue
            self._database.execute(
                "INSERT INTO journal VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET offset = excluded.offset",
                (entry.name, offset),
            )
        return found

    def _read_store(self, changed: set[tuple[int, str]], *, full: bool) -> int:
        """Read generations that were committed again and, with `full`, what is new or gone."""
        database = self._database
        missing = (self._word(MISSING), self._word(BLOCKED))
        database.execute("BEGIN")
        database.execute("DELETE FROM todo")
        database.executemany(
            "INSERT OR IGNORE INTO todo SELECT id FROM row WHERE gen_id = ? AND stage = ?",
            ((gen_id, order) for order, gen_id in changed),
        )
        if full:
            database.execute(
                "CREATE TEMP TABLE listed (stage INTEGER, gen_id TEXT, PRIMARY KEY (stage, gen_id)) "
                "WITHOUT ROWID"
            )
            for stage in STAGES:
                database.executemany(
                    "INSERT OR IGNORE INTO listed VALUES (?, ?)",
                    ((stage.order, name) for name in _names(self._directories[stage])),
                )
            database.execute(
                "INSERT OR IGNORE INTO todo SELECT row.id FROM row LEFT JOIN listed USING (stage, gen_id) "
                "WHERE (listed.gen_id IS NULL) != (row.state IN (?, ?))",
                missing,
            )
            database.execute("DROP TABLE listed")
        database.execute("COMMIT")
        total = database.execute("SELECT count(*) FROM todo").fetchone()[0]
        self.progress.done, self.progress.total = 0, total
        if total:
            self._write_batches()
        return int(total)

    def _write_batches(self) -> None:
        """Read in this thread while another one writes: SQLite works without the interpreter's lock."""
        ready: queue.Queue[list[tuple[int, Facts]] | None] = queue.Queue(maxsize=4)
        trouble: list[BaseException] = []

        def write() -> None:
            try:
                database = self._database
                database.execute("BEGIN")
                count = 0
                while (batch := ready.get()) is not None:
                    self._write(batch)
                    count += 1
                    if count % 20 == 0:  # readers see progress, and the log of writes stays small
                        database.execute("COMMIT")
                        database.execute("BEGIN")
                database.execute("COMMIT")
            except BaseException as error:  # noqa: BLE001 (it is raised where the batch came from)
                trouble.append(error)
                while ready.get() is not None:
                    pass

        writer = threading.Thread(target=write, name="genworker-view-write", daemon=True)
        writer.start()
        source = self.reader()
        last = 0
        try:
            while not self._stopping.is_set() and not trouble:
                part = source.execute(
                    "SELECT row.id, stage, gen_id FROM todo JOIN row USING (id) "
                    "WHERE id > ? ORDER BY id LIMIT ?",
                    (last, BATCH),
                ).fetchall()
                if not part:
                    break
                ready.put([(row_id, self._facts(STAGES[order], gen_id)) for row_id, order, gen_id in part])
                last = part[-1][0]
                self.progress.done += len(part)
        finally:
            source.close()
            ready.put(None)
            writer.join()
        if trouble:
            raise trouble[0]

    def _facts(self, stage: Stage, gen_id: str) -> Facts:
        return read_facts(f"{self._directories[stage]}/{gen_id}", stage, gen_id)

    def _write(self, batch: Sequence[tuple[int, Facts]]) -> None:
        rows, texts = [], []
        for row_id, facts in batch:
            doc = None
            if facts.text:
                doc, self._next_doc = self._next_doc, self._next_doc + 1
                texts.append((doc, facts.text[:MAX_TEXT_BYTES]))
            rows.append(
                (
                    self._word(facts.state),
                    facts.score,
                    facts.cost_usd,
                    facts.tokens,
                    len(facts.text) or None,
                    None if facts.run_id is None else self._word(facts.run_id),
                    facts.finished_at,
                    facts.reason,
                    doc,
                    facts.choice,
                    row_id,
                )
            )
        self._database.executemany("INSERT INTO text (rowid, body) VALUES (?, ?)", texts)
        self._database.executemany(
            "UPDATE row SET state = ?, score = ?, cost = ?, tokens = ?, chars = ?, run = ?, finished = ?, "
            "reason = ?, doc = ?, choice = ? WHERE id = ?",
            rows,
        )

    def _block(self) -> None:
        """Rows that cannot be made: what is above them has no usable text."""
        missing, blocked, done = self._word(MISSING), self._word(BLOCKED), self._word(DONE)
        execute = self._database.execute
        execute("BEGIN")
        execute("UPDATE row SET state = ? WHERE state = ?", (missing, blocked))
        for stage in STAGES[1:]:
            execute(
                "UPDATE row SET state = ? FROM row AS above WHERE row.stage = ? AND row.state = ? "
                "AND above.cohort = row.cohort AND above.stage = row.stage - 1 AND above.gen_id = row.parent "
                "AND above.state NOT IN (?, ?)",
                (blocked, stage.order, missing, missing, done),
            )
            execute(
                "UPDATE row SET state = ? FROM row AS above WHERE row.stage = ? AND row.state = ? "
                "AND row.other IS NOT NULL AND above.cohort = row.cohort AND above.stage = row.stage - 1 "
                "AND above.gen_id = row.other AND above.state NOT IN (?, ?)",
                (blocked, stage.order, missing, missing, done),
            )
        execute("COMMIT")

    def _word(self, text: str) -> int:
        number = self._words.get(text)
        if number is None:
            number = self._database.execute("INSERT INTO word (text) VALUES (?)", (text,)).lastrowid
            assert number is not None
            self._words[text] = number
        return number


def _names(directory: str) -> Iterator[str]:
    """Names of the generations in a stage's directory."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name[0] != ".":
                    yield entry.name
    except OSError:
        return
