"""Cells that spreadsheets do not execute."""

from __future__ import annotations

import pytest

from genworker.reports.files import csv_cell


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_a_string_that_a_spreadsheet_would_run_gets_a_quote(start: str) -> None:
    assert csv_cell(f"{start}SUM(A1)") == f"'{start}SUM(A1)"


@pytest.mark.parametrize(
    ("cell", "decimals", "text"),
    [
        (None, None, ""),
        ("", None, ""),
        ("plain = text", None, "plain = text"),
        ("é=1", None, "é=1"),
        (-3, None, "-3"),
        (7, 2, "7"),
        (7.0, None, "7.0"),
        (6.66667, None, "6.66667"),
        (-1.25, 3, "-1.250"),
        (22 / 3, 2, "7.33"),
        (2.345, 2, "2.35"),  # the binary number lies a little above the half
        (-0.001, 2, "0.00"),
    ],
)
def test_numbers_stay_numbers_and_nothing_stays_empty(
    cell: str | float | None, decimals: int | None, text: str
) -> None:
    assert csv_cell(cell, decimals) == text
