"""Reads an older project's ``spec/config.yaml`` and the files beside it that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from genworker.cohorts.older_spec import Levels, LoadFile, OlderSpecError
from genworker.errors import ConfigError, Fault
from genworker.store.csvfile import CsvFault, open_csv

MAX_BYTES = 4_000_000


def read_older_spec(path: Path) -> tuple[Any, LoadFile]:
    """What the YAML parser makes of the file, every scalar a string, and how to read what it names.

    Raises:
        ConfigError: it cannot be read, or is no YAML.
    """
    try:
        return _yaml(path), lambda name: _load(path.parent, name)
    except OlderSpecError as error:
        raise ConfigError([Fault(str(error), where=str(path))]) from None


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise OlderSpecError(f"{path} is not there, or is no file")
        if path.stat().st_size > MAX_BYTES:
            raise OlderSpecError(f"{path} is larger than {MAX_BYTES} bytes")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise OlderSpecError(f"{path} is not UTF-8") from None
    except OSError as error:
        raise OlderSpecError(f"{path} cannot be read: {error.strerror}") from None


def _yaml(path: Path) -> Any:
    try:
        # The base loader makes strings alone: no object, no number, no date out of a name.
        return yaml.load(_text(path), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = " ".join(str(error).split())[:200]
        raise OlderSpecError(f"{path} is no YAML: {problem}") from None


def _load(base: Path, name: str) -> Levels:
    path = base / name
    if not path.resolve().is_relative_to(base.resolve()):
        raise OlderSpecError(f"@file:{name} lies outside of {base}")
    if path.suffix == ".csv":
        return _csv(path)
    if path.suffix == ".txt":
        return [(line.strip(),) for line in _text(path).splitlines() if line.strip()]
    if path.suffix in (".yaml", ".yml"):
        return _listed(path, _yaml(path))
    if path.suffix == ".json":
        try:
            return _listed(path, json.loads(_text(path), parse_int=str, parse_float=str))
        except (ValueError, RecursionError):
            raise OlderSpecError(f"{path} is no JSON") from None
    raise OlderSpecError(f"@file:{name}: a file of this kind is not known; use csv, txt, yaml or json")


def _csv(path: Path) -> Levels:
    try:
        with open_csv(path) as (header, records):
            rows = [(line, tuple(cell.strip() for cell in cells)) for line, cells in records if any(cells)]
    except CsvFault as error:
        raise OlderSpecError(str(error.fault)) from None
    for line, cells in rows:
        if len(cells) != len(header) or not all(cells):
            raise OlderSpecError(f"{path}:{line} has not one cell for each of its {len(header)} columns")
    return [cells for _, cells in rows]


def _listed(path: Path, value: object) -> Levels:
    if not isinstance(value, list):
        raise OlderSpecError(f"{path} holds no list")
    found: Levels = []
    for item in value:
        cells = item if isinstance(item, list) else [item]
        if not all(isinstance(cell, str) for cell in cells):
            raise OlderSpecError(f"{path} holds something that is neither a name nor a list of names")
        found.append(tuple(cells))
    return found
