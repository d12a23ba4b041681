"""Numbers as a person reads them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from hv15_batch.units import (
    GIB,
    NOT_MEASURED,
    age,
    format_duration,
    format_gib,
    format_number,
    format_seconds,
    format_setting,
    format_share,
    format_value,
    format_watt_hours,
    parse_time,
    shortened,
)


def test_what_was_not_measured_is_a_dash() -> None:
    formats = (format_gib, format_number, format_seconds, format_share, format_watt_hours)

    assert {form(None) for form in formats} == {NOT_MEASURED}


def test_bytes_are_gib_of_1024_cubed_with_the_decimals_asked_for() -> None:
    assert (format_gib(1024**3), format_gib(1.5 * GIB, 2), format_gib(10**9)) == (
        "1.0",
        "1.50",
        "0.9",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_seconds(9.994), "9.99"),
        (format_seconds(10.04), "10.0"),
        (format_share(0.0815), "8.2%"),
        (format_share(0.615, 0), "62%"),
        (format_watt_hours(3600 * 12.345), "12.3"),
        (format_setting(True), "yes"),
        (format_setting(6.0), "6"),
        (format_setting(2.5), "2.5"),
        (format_setting("auto"), "auto"),
        (format_number(1234.567), "1235"),
        (format_value("a cat"), "a cat"),
        (format_value(" a cat"), "' a cat'"),
        (format_value("a\x1b[2J"), r"'a\x1b[2J'"),
        (format_value([1, 2]), "[1, 2]"),
        (shortened(" a\n cat ", 10), "a cat"),
        (shortened("0123456789", 10), "0123456789"),
        (shortened("0123456789x", 10), "012345678…"),
    ],
)
def test_a_number_or_a_text_is_shown_as_a_person_reads_it(text: str, expected: str) -> None:
    assert text == expected


def test_a_moment_without_a_zone_is_utc() -> None:
    moment = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)

    assert parse_time("2026-11-22T09:30:00") == moment
    assert parse_time("2026-11-22T09:30:00Z") == moment
    assert parse_time("2026-11-22T10:30:00+01:00") == moment
    assert age("2026-11-22T09:30:00Z", moment + timedelta(minutes=90)) == "1 h 30 min"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (45.4, "45 s"),
        (59.9, "1 min"),
        (61, "1 min"),
        (3599, "1 h"),
        (23_400, "6 h 30 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_a_duration_reads_as_a_person_says_it(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
