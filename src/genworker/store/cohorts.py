"""The files of a cohort: specification and lists in; membership, manifest and combo register out, each whole.

A file appears under its name complete and synced, or not at all, so a worker that reads it while it is
being rebuilt has either the old one or the new one.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import secrets
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

from genworker.cohorts.adopt import Listed
from genworker.cohorts.curated import read_ids
from genworker.cohorts.growth import FileRows, Growth
from genworker.cohorts.manifest import FORMAT, Adopted, Earlier
from genworker.cohorts.spec import PairTable, Specification
from genworker.core.catalog import Combo
from genworker.core.facts import Facts, whole
from genworker.core.generation import file_digest
from genworker.core.ids import id_fault
from genworker.core.membership import SECOND_PARENT, MembershipRow
from genworker.core.stages import Stage
from genworker.errors import ConfigError, Fault, LockedError, MembershipError, StoreError, UsageError
from genworker.paths import Paths
from genworker.store.catalog import read_combos
from genworker.store.csvfile import CsvFault, open_csv
from genworker.store.durable import cannot_write, make_directories, sync_path
from genworker.store.lock import FileLock, describe_holder, holder_facts
from genworker.store.reading import read_generation

COMBO_COLUMNS = ("combo_id", "version", "concept_id", "description_level", "k_max", "created_at")
COMBO_VERSION = "v1"
PAIR_COLUMNS = ("parent_gen_id", SECOND_PARENT)
LOCK_PATIENCE_S = 20.0
MAX_SPEC_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class Modes:
    """Permissions of what is made."""

    directory: int = 0o700
    file: int = 0o600

    @classmethod
    def of(cls, *, group_permissions: bool) -> Modes:
        """For the owner alone, or for the group as well (within the umask)."""
        return cls(0o770, 0o660) if group_permissions else cls()


# Reading


def refuse_linked_cohort(paths: Paths, cohort_id: str) -> None:
    """Refuse a cohort whose directory is a link: what is built would land somewhere else.

    Raises:
        UsageError: `cohort_id` cannot be the name of a directory.
        StoreError: ``cohorts``, the cohort's directory or a file to be written is a symbolic link.
    """
    reason = id_fault(cohort_id)
    if reason is not None:
        fix = "name the cohort with letters, digits, '-' and '_'"
        raise UsageError([Fault(f"cohort {cohort_id[:60]!r} {reason}", fix=fix)])
    for path in (
        paths.cohorts_dir,
        paths.cohort_dir(cohort_id),
        paths.cohort_membership_csv(cohort_id),
        paths.cohort_manifest_json(cohort_id),
        paths.combo_mappings_csv,
    ):
        if path.is_symlink():
            raise StoreError(
                f"{path} is a symbolic link\n  fix:   put the real file or directory in its place; "
                "nothing was written",
                path=str(path),
            )


def read_specification(paths: Paths, cohort_id: str) -> Specification | None:
    """The cohort's ``cohort.toml``; ``None`` when there is none.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    path = paths.cohort_spec_toml(cohort_id)
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        raise ConfigError([Fault("this is not a file", where=str(path), fix="put a TOML file in its place")])
    text = _read_text(path)
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is no TOMLDecodeError
        raise ConfigError([Fault(f"not valid TOML: {error}", where=str(path))]) from None
    return Specification(document, text, str(path), lambda name: _read_pairs(path.parent / name))


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_SPEC_BYTES:
            raise ConfigError([Fault(f"the file is larger than {MAX_SPEC_BYTES} bytes", where=str(path))])
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            [Fault(f"not UTF-8: {error.reason}", where=str(path), fix="save it as UTF-8")]
        ) from None
    except OSError as error:
        raise ConfigError([Fault(f"cannot be read: {error.strerror}", where=str(path))]) from None


def _read_pairs(path: Path) -> PairTable | Fault:
    try:
        with open_csv(path) as (header, records):
            return PairTable(str(path), header, list(records))
    except CsvFault as error:
        return error.fault


def read_selected_combos(paths: Paths) -> dict[str, Combo] | None:
    """The combos of ``selected_combo_mappings.csv``, in its order; ``None`` when there is no such file."""
    if not paths.selected_combos_csv.exists():
        return None
    return read_combos(paths.selected_combos_csv, [])  # its faults are the catalogue's, reported with it


def read_registered_combos(paths: Paths) -> dict[str, Combo]:
    """The combos of ``combo_mappings.csv``."""
    return read_combos(paths.combo_mappings_csv, [])


def read_id_list(path: Path) -> tuple[list[tuple[int, str]], list[Fault]]:
    """(line, gen_id) of a curated list, and a fault for each line that is no id.

    Raises:
        ConfigError: it cannot be read.
    """
    return read_ids(_read_text(path), str(path))


def read_facts(paths: Paths, stage: Stage, gen_id: str) -> Facts | str:
    """The metadata of a generation that can be built upon; else why not, in words."""
    try:
        generation = read_generation(paths.gens_root, stage, gen_id)
    except StoreError as error:
        return "is not in the store" if not paths.generation_dir(stage, gen_id).exists() else str(error)
    if not generation.metadata:
        return "has no metadata.json"
    if not generation.is_done:
        failure = generation.failure
        return "is not done: " + (failure.message if failure is not None else "it has no parsed.txt")
    return generation.facts


def refuse_newer_manifest(record: object, where: str) -> None:
    """A newer genworker's manifest would be overwritten by one that says less.

    Raises:
        MembershipError: it is newer.
    """
    if not isinstance(record, dict) or "genworker_version" not in record:
        return  # another tool's, which is no obstacle
    number = whole(record.get("format"))
    if number is not None and number > FORMAT:
        what = f"is of format {number}, written by a newer genworker; this one knows format {FORMAT}"
        fix = "build with that version or a newer one, or move the file away to have it written anew"
        raise MembershipError([Fault(what, where=where, fix=fix)], title="nothing was written")


def read_earlier(paths: Paths, cohort_id: str) -> Earlier:
    """What the manifest of an earlier build says; nothing where there is none, or it cannot be read."""
    try:
        record = json.loads(paths.cohort_manifest_json(cohort_id).read_bytes())
        refuse_newer_manifest(record, str(paths.cohort_manifest_json(cohort_id)))
        return Earlier.from_json(record)
    except (OSError, ValueError, RecursionError):
        return Earlier()


def read_adopted(paths: Paths, cohort_id: str) -> Adopted:
    """How a cohort's drafts were made when it was adopted; nothing where it was not, or cannot be read."""
    try:
        record = json.loads(paths.cohort_adopted_json(cohort_id).read_bytes())
    except (OSError, ValueError, RecursionError):
        return Adopted()
    return Adopted.from_json(record)


def read_listed(paths: Paths, cohort_id: str) -> tuple[tuple[str, ...], list[Listed]]:
    """The further columns and the rows of a two-column membership.

    Raises:
        MembershipError: the file cannot be read, or a row has too few or too many cells.
    """
    path = paths.cohort_membership_csv(cohort_id)
    listed: list[Listed] = []
    try:
        with open_csv(path) as (header, records):
            names = [name.strip() for name in header]
            at_stage, at_gen = names.index("stage"), names.index("gen_id")
            others = [place for place in range(len(names)) if place not in (at_stage, at_gen)]
            for line, cells in records:
                if not any(cells):
                    continue
                if len(cells) != len(names):
                    what = f"{len(cells)} cells in a file of {len(names)} columns"
                    raise CsvFault(Fault(what, where=str(path), line=line))
                extra = tuple(cells[place] for place in others)
                listed.append(Listed(line, cells[at_stage].strip(), cells[at_gen].strip(), extra))
    except CsvFault as error:
        raise MembershipError([error.fault]) from None
    return tuple(names[place] for place in others), listed


def read_file_rows(paths: Paths, cohort_id: str) -> FileRows:
    """The rows of the cohort's file, each with its text; none when it has no membership yet.

    Raises:
        MembershipError: the file cannot be understood, so a build must not replace it.
    """
    path = paths.cohort_membership_csv(cohort_id)
    if not path.exists():
        return FileRows()
    lines: list[str] = []
    try:
        with open_csv(path, lines) as (header, records):
            names = tuple(name.strip() for name in header)
            missing = [name for name in ("stage", "gen_id") if name not in names]
            if missing:
                raise CsvFault(Fault(f"missing columns: {', '.join(missing)}", where=str(path), line=1))
            found = FileRows(header=names, line_end="\r\n" if lines[0].endswith("\r\n") else "\n")
            at_stage, at_gen = names.index("stage"), names.index("gen_id")
            at_pair = [names.index(name) for name in PAIR_COLUMNS] if set(PAIR_COLUMNS) <= set(names) else []
            lines.clear()
            for line, cells in records:
                text = "".join(lines)
                lines.clear()
                if not any(cells):
                    continue
                if len(cells) != len(names):
                    what = f"{len(cells)} cells in a file of {len(names)} columns"
                    raise CsvFault(Fault(what, where=str(path), line=line))
                stage, gen_id = cells[at_stage], cells[at_gen]
                rows = found.rows.setdefault(stage, {})
                if gen_id in rows:
                    found.twice.append((stage, gen_id))
                else:
                    rows[gen_id] = text
                    if at_pair and cells[at_pair[1]]:
                        found.pairs.append((cells[at_pair[0]], cells[at_pair[1]]))
    except CsvFault as error:
        fault = error.fault
        fix = "mend the file, or move it away to build it anew"
        raise MembershipError(
            [Fault(fault.what, where=fault.where, line=fault.line, column=fault.column, fix=fix)],
            title=f"{path} is there and cannot be understood, nothing was written",
        ) from None
    return found


def catalogue_digests(paths: Paths, files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of those of the files that exist, by their path below the data root."""
    digests = {}
    for path in files:
        try:
            content = path.read_bytes()
        except OSError:
            continue
        name = path.relative_to(paths.data_root) if path.is_relative_to(paths.data_root) else path
        digests[name.as_posix()] = file_digest(content)
    return digests


# Writing

_LEFT = re.compile(r"\..+\.[0-9a-f]{12}")


def remove_leftovers(paths: Paths, cohort_id: str) -> None:
    """Remove what builds that were killed have left beside their files; under the build's lock."""
    for directory in (paths.cohort_dir(cohort_id), paths.data_root):
        with contextlib.suppress(OSError):
            for path in directory.iterdir():
                if _LEFT.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                    path.unlink()


@contextlib.contextmanager
def build_lock(paths: Paths, modes: Modes) -> Iterator[None]:
    """Held while files are written: two builds at once would each append the same combos.

    Raises:
        LockedError: another build holds it for longer than any build takes to write.
        StoreError: the data root cannot be written.
    """
    path = paths.build_lock_path
    try:
        make_directories(path.parent, modes.directory)
    except OSError as error:
        raise cannot_write(error, path) from error
    lock = FileLock(path, modes.file)
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while not lock.acquire(holder_facts("build")):
        if time.monotonic() > deadline:
            raise LockedError(
                f"another build is writing ({describe_holder(lock.holder())})\n"
                f"  where: {path}\n  fix:   wait for it, or stop it; its lock dies with it"
            )
        time.sleep(0.05)
    try:
        yield
    finally:
        lock.release()


def replace_file(path: Path, write: Callable[[TextIO], None], modes: Modes) -> bool:
    """Write a text file beside `path`, sync it, and put it in its place; an equal file stays as it is.

    Returns:
        Whether the file has changed.

    Raises:
        StoreError: the disk refused; what stood there is untouched.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}"
    try:
        make_directories(path.parent, modes.directory)
        mode = _mode_of(path) or modes.file
        fd = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, modes.file
        )
        try:
            with os.fdopen(fd, "w", encoding="utf-8", newline="") as stream:
                write(stream)
                stream.flush()
                if mode != modes.file:
                    os.fchmod(fd, mode)
                os.fsync(fd)
            if _same_content(temporary, path):
                temporary.unlink()
                return False
            temporary.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_path(path.parent)
    except OSError as error:
        raise cannot_write(error, path) from error
    return True


def _mode_of(path: Path) -> int | None:
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        return None


def _same_content(one: Path, other: Path) -> bool:
    try:
        if one.stat().st_size != other.stat().st_size:
            return False
        with one.open("rb") as first, other.open("rb") as second:
            while True:
                left, right = first.read(1 << 20), second.read(1 << 20)
                if left != right:
                    return False
                if not left:
                    return True
    except OSError:
        return False


def write_membership(
    stream: TextIO,
    rows: Iterable[MembershipRow],
    file: FileRows,
    growth: Growth,
    columns: Sequence[str],
) -> None:
    """Write rows in their order. A row that the file has is copied as its text is; others are written anew.

    Args:
        columns: `file.columns`, in the order of which new rows are written; a column that genworker does
            not know stays empty in them.
    """
    writer = csv.writer(stream, lineterminator=file.line_end)
    writer.writerow(columns)
    nothing = len(MembershipRow._fields)
    fields = MembershipRow._fields
    columns_at = [fields.index(name) if name in fields else nothing for name in columns]
    pick = itemgetter(*columns_at)
    added = len(columns) - len(file.header)
    for row in rows:
        text = growth.take(row)
        if text is None:
            writer.writerow(pick((*row, "")))
            continue
        body = text.rstrip("\r\n")
        if added:
            values = pick((*row, ""))[-added:]
            body += "".join(f",{'' if value is None else value}" for value in values)
        elif len(body) < len(text):
            stream.write(text)
            continue
        stream.write(body + file.line_end)


def append_combos(paths: Paths, combos: Iterable[Combo], modes: Modes) -> int:
    """Add the combos that ``combo_mappings.csv`` does not have; its rows stay as they are.

    The file is written anew as a whole, so that a full disk cannot leave half a row behind.

    Returns:
        How many combos were added.
    """
    path = paths.combo_mappings_csv
    registered = read_registered_combos(paths)
    new = [combo for combo in combos if combo.combo_id not in registered]
    if not new:
        return 0
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            before = stream.read()
    except FileNotFoundError:
        before = ""
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read: {error}", path=str(path)) from error
    header = next(csv.reader([before.removeprefix("\ufeff").partition("\n")[0]]), None) or list(COMBO_COLUMNS)
    columns = [name.strip() for name in header]
    now = datetime.now(UTC).isoformat(timespec="seconds")

    def write(stream: TextIO) -> None:
        stream.write(before)
        if before and not before.endswith(("\n", "\r")):
            stream.write("\n")
        writer = csv.writer(stream, lineterminator="\r\n" if "\r\n" in before[:2000] else "\n")
        if not before.strip():
            writer.writerow(columns)
        for combo in new:
            for concept in sorted(combo.concept_ids):  # the order in which drafts get them
                values = (combo.combo_id, COMBO_VERSION, concept, combo.level, combo.k_max, now)
                record = dict(zip(COMBO_COLUMNS, values, strict=True))
                writer.writerow([record.get(name, "") for name in columns])

    replace_file(path, write, modes)
    return len(new)


def keep_older(path: Path, suffix: str, modes: Modes) -> Path:
    """Keep a file's bytes beside it before another takes its place; returns the copy.

    A copy that is there with other bytes stays, and the new one gets a number.
    """
    number = 1
    while True:
        numbered = suffix if number == 1 else f"{suffix}-{number}"
        target = path.with_name(f"{path.stem}.{numbered}{path.suffix}")
        if not os.path.lexists(target):
            break
        if target.is_file() and _same_content(path, target):
            return target
        number += 1
    try:
        content = path.read_bytes()
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, modes.file)
        with os.fdopen(fd, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        sync_path(path.parent)
    except OSError as error:
        raise cannot_write(error, target) from error
    return target


def keep_foreign_manifest(paths: Paths, cohort_id: str, modes: Modes) -> Path | None:
    """Keep another tool's ``manifest.json`` beside the one that is about to take its place.

    Returns:
        The copy; ``None`` when there is no manifest, or it is genworker's own.
    """
    path = paths.cohort_manifest_json(cohort_id)
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        record = None
    if isinstance(record, dict) and "genworker_version" in record:
        return None
    return keep_older(path, "older", modes)


def write_adopted(paths: Paths, cohort_id: str, record: Mapping[str, Any], modes: Modes) -> None:
    """Write ``adopted.json``."""

    def write(stream: TextIO) -> None:
        json.dump(record, stream, indent=2, ensure_ascii=False, default=str)
        stream.write("\n")

    replace_file(paths.cohort_adopted_json(cohort_id), write, modes)


def write_manifest(paths: Paths, cohort_id: str, record: Mapping[str, Any], modes: Modes) -> None:
    """Write ``manifest.json``."""

    def write(stream: TextIO) -> None:
        json.dump(record, stream, indent=2, ensure_ascii=False, default=str)
        stream.write("\n")

    replace_file(paths.cohort_manifest_json(cohort_id), write, modes)
