"""The page's colours: a text can be read on every ground that it stands on, in light and in dark."""

from __future__ import annotations

import re
from importlib.resources import files
from itertools import product

import pytest

STYLE = files("genworker.reports").joinpath("templates", "style.css").read_text(encoding="utf-8")
DARK = "".join(re.findall(r"@media \(prefers-color-scheme: dark\) \{\n(.*?)\n\}", STYLE, re.DOTALL))
LIGHT = STYLE.split("@media", 1)[0] + "".join(re.findall(r"^\.h\d.*$", STYLE, re.MULTILINE))


def colours(css: str) -> dict[str, str]:
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css))
    return found | {
        f"h{level}": colour for level, colour in re.findall(r"\.h(\d+) \{ background: (#\w+)", css)
    }


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """From 1 to 21 (WCAG 2.2)."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("css", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_stands_out(css: str) -> None:
    palette = colours(css)
    pairs = [*product(("ink", "heat-soft"), (f"h{level}" for level in range(11)))]
    pairs += product(("ink", "soft", "link", "warn", "bad"), ("paper", "raised"))
    pairs += [("mark-ink", "mark")]
    faint = {pair: contrast(*(palette[name] for name in pair)) for pair in pairs}
    assert {pair: round(value, 2) for pair, value in faint.items() if value < 4.5} == {}


@pytest.mark.parametrize("css", [LIGHT, DARK], ids=["light", "dark"])
def test_a_higher_mean_has_a_shade_further_from_the_paper(css: str) -> None:
    palette = colours(css)
    distances = [contrast(palette[f"h{level}"], palette["paper"]) for level in range(11)]
    assert distances == sorted(distances)
