"""Drawings, as they look."""

import io

import numpy as np
import pytest

from diffplan.terminal import (
    ASCII,
    UNICODE,
    choose_characters,
    draw_beside,
    draw_density,
    draw_histogram,
    draw_table,
    find_width,
    format_bytes,
    shorten_number,
    shorten_text,
)


def test_the_bars_of_a_histogram_are_as_high_as_the_counts() -> None:
    values = np.repeat([1, 2, 4], [8, 4, 1])
    lines = draw_histogram(values, 15, 4, UNICODE)
    assert [line.rstrip() for line in lines] == [
        "    8 ┤██",
        "      │██",
        "      │████",
        "      │████  ▄▄",
        "    0 └────────",
        "       1      4",
    ]


def test_a_histogram_of_one_value_is_a_line() -> None:
    assert draw_histogram(np.full(1200, 2.5), 30, 4, ASCII) == ["1,200 times 2.5000"]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e149])
@pytest.mark.parametrize("characters", [ASCII, UNICODE], ids=["ascii", "unicode"])
def test_histograms_of_any_numbers_fit(scale: float, characters) -> None:
    values = np.random.default_rng(0).standard_normal(1000) * scale
    lines = draw_histogram(values, 36, 6, characters)
    assert len(lines) == 8
    assert max(map(len, lines)) <= 36
    two = np.array([scale, np.nextafter(scale, np.inf)])
    assert max(map(len, draw_histogram(two, 36, 6, characters))) <= 36


def test_a_density_map_shows_walls_and_visits() -> None:
    counts = np.array([[0, 0, 0, 0], [0, 1, 10, 0], [0, 0, 0, 0]])
    walls = np.ones((3, 4), bool)
    walls[1, 1:3] = False
    drawn = draw_density(counts, walls, UNICODE)
    assert drawn == ["████", "█·▓█", "████"]
    assert draw_density(counts, walls, ASCII) == ["####", "#.@#", "####"]
    walls[1, 3] = True
    counts[1, 3] = 10  # visits in a wall are shown: whoever looks should see them
    assert draw_density(counts, walls, UNICODE)[1] == "█·▓▓"
    framed = draw_density(counts[1:2], None, UNICODE)
    assert framed == ["┌────┐", "│ ·▓▓│", "└────┘"]
    assert draw_density(np.zeros((1, 2), int), None, ASCII) == ["+--+", "|  |", "+--+"]


def test_tables_and_blocks_are_aligned() -> None:
    assert draw_table(["name", "n"], [["a", "1"], ["bcdef", "200"]]) == [
        "name     n",
        "a        1",
        "bcdef  200",
    ]
    assert draw_beside([["ab", "c"], ["d"]], 4) == ["ab  d", "c"]
    assert shorten_text("abcdef", 4, UNICODE) == "abc…"
    assert shorten_text("abcdef", 4, ASCII) == "a..."
    assert shorten_text("abcd", 4, ASCII) == "abcd"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-3, "-3"),
        (0.5, "0.5000"),
        (-12.34567, "-12.346"),
        (1234567, "1234567"),
        (12345678, "1.23e7"),
        (99999.99, "100000"),
        (-99999.99, "-100000"),
        (0.00099999, "1.00e-3"),
        (-1.5e-5, "-1.5e-5"),
        (1e149, "1.0e149"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_numbers_keep_to_seven_characters(value: float, text: str) -> None:
    assert shorten_number(value) == text


def test_numbers_of_any_size_are_short_and_near() -> None:
    generator = np.random.default_rng(0)
    for value in generator.standard_normal(3000) * 10.0 ** generator.integers(-300, 300, 3000):
        text = shorten_number(value)
        assert len(text) <= 7, (value, text)
        assert float(text) == pytest.approx(value, rel=0.5)


def test_sizes() -> None:
    assert format_bytes(1_234_567) == "1.2 MB"
    assert format_bytes(2_500_000_000) == "2.50 GB"


def test_characters_are_those_that_the_stream_can_encode() -> None:
    assert choose_characters(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) is UNICODE
    assert choose_characters(io.TextIOWrapper(io.BytesIO(), encoding="ascii")) is ASCII
    assert choose_characters(io.TextIOWrapper(io.BytesIO(), encoding="latin-1")) is ASCII
    assert choose_characters(io.StringIO()) is ASCII  # which does not say


def test_the_width_is_that_of_the_terminal_within_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, width in ((100, 100), (10, 40), (1000, 120)):
        monkeypatch.setenv("COLUMNS", str(given))
        assert find_width() == width
