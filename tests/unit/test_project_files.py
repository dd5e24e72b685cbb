"""The repository's own files agree with each other."""

from __future__ import annotations

import filecmp
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from genworker.project.endpoints import KINDS
from genworker.project.settings import ModelSettings, Settings, load_settings

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config" / "genworker.toml"


def keys(model: type[BaseModel]) -> set[str]:
    found = set(model.model_fields)
    for info in model.model_fields.values():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found |= keys(annotation)
    return found


@pytest.mark.parametrize("section", [Settings, ModelSettings, *(kind.settings for kind in KINDS.values())])
def test_the_shipped_configuration_has_every_key(section: type[BaseModel]) -> None:
    text = CONFIG.read_text(encoding="utf-8")
    missing = {key for key in keys(section) if f"{key} =" not in text and f"[{key}" not in text}
    assert missing == set()


def test_the_shipped_configuration_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert load_settings(CONFIG).settings.default_endpoint == "embedded"


def test_what_is_commented_out_would_be_valid_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = []
    for line in CONFIG.read_text(encoding="utf-8").splitlines():
        bare = line.removeprefix("# ")
        is_setting = line.startswith("# ") and (bare.startswith("[") or " = " in bare.split("#")[0])
        is_prose = bare[:1].isupper() or "model_path" in bare or "ca_file" in bare
        lines.append(bare if is_setting and not is_prose else line)
    text = "\n".join(lines)
    section = ""
    seen: set[tuple[str, str]] = set()
    kept = []
    for line in text.splitlines():
        if line.startswith("["):
            section = line
        key = line.split(" = ")[0]
        # Sampling keys are shown once for all sections that may have them.
        if " = " in line and not line.startswith("#"):
            if (section, key) in seen:
                continue
            seen.add((section, key))
        kept.append(line)
    path = tmp_path / "all.toml"
    path.write_text("\n".join(kept), encoding="utf-8")
    assert tomllib.loads(path.read_text(encoding="utf-8"))
    assert load_settings(path).settings.endpoints["openrouter"].kind == "openai"


def test_the_demo_uses_the_catalogue_that_init_writes() -> None:
    starter = ROOT / "src" / "genworker" / "starter" / "data" / "1_raw"
    ours = ROOT / "data" / "1_raw"
    names = sorted(str(path.relative_to(starter)) for path in starter.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(ours)) for path in ours.rglob("*") if path.is_file())
    _, different, failed = filecmp.cmpfiles(starter, ours, names, shallow=False)
    assert (different, failed) == ([], [])


def test_init_writes_the_whole_commented_configuration() -> None:
    assert (ROOT / "src/genworker/starter/config/genworker.toml").read_bytes() == CONFIG.read_bytes()
