"""Dates in the forms of data sets, against moments that are known."""

import datetime

import pytest

from allam_jax.corpus.dates import parse_date
from allam_jax.corpus.keys import NO_DATE, date_key

MOMENT = datetime.datetime(2024, 3, 5, 10, 11, 12, tzinfo=datetime.UTC)
SECONDS = int(MOMENT.timestamp())


@pytest.mark.parametrize(
    "text",
    [
        "2024-03-05T10:11:12",
        "2024-03-05T10:11:12Z",
        "2024-03-05T10:11:12.000000000Z",
        "2024-03-05T13:11:12+0300",
        "2024-03-05 13:11:12 +03:00",
        "2024-03-05 10:11:12 UTC",
        "2024/03/05 10:11:12",
        "2024.3.5 10:11:12",
        "2024-3-5 10:11:12",
        "2024-065T10:11:12Z",
        "2024-W10-2T10:11:12",
        "20240305101112",
        "20240305T101112Z",
        str(SECONDS),
        f"{SECONDS}.0",
        str(SECONDS * 1_000),
        str(SECONDS * 1_000_000),
        str(SECONDS * 1_000_000_000),
        "Tue, 05 Mar 2024 10:11:12 GMT",
        "Tue, 5 Mar 2024 13:11:12 +0300",
        "٢٠٢٤-٠٣-٠٥ ١٠:١١:١٢",
    ],
)
def test_one_moment_in_many_forms(text):
    assert parse_date(text) == MOMENT
    assert date_key(text) == SECONDS * 1_000_000


def test_days_months_and_years():
    utc = datetime.UTC
    assert (
        parse_date("2024-03-05")
        == parse_date("20240305")
        == parse_date("2024/3/5")
        == MOMENT.replace(hour=0, minute=0, second=0)
    )
    assert parse_date("2024-03") == datetime.datetime(2024, 3, 1, tzinfo=utc)
    assert parse_date("2024") == datetime.datetime(2024, 1, 1, tzinfo=utc)
    assert parse_date("2024/03") == parse_date("2024-3") == parse_date("2024-03")
    assert parse_date("2024-3-5") == parse_date("2024-065") == parse_date("2024-03-05")
    assert parse_date("2024-366") == parse_date("2024-12-31")
    for midnight in ("2024-03-05T24:00:00", "2024-03-05T24:00:00Z", "2024-03-05 24:00", "20240305T240000"):
        assert parse_date(midnight) == datetime.datetime(2024, 3, 6, tzinfo=utc)
    assert parse_date("2024-03-05T24:00:00+03:00") == datetime.datetime(2024, 3, 5, 21, tzinfo=utc)
    assert parse_date("1600").year == 1600
    assert parse_date("2199-12-31").year == 2199


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_numbers_are_moments_of_1990_to_2099(unit):
    for year in (1990, 2001, 2024, 2032, 2050, 2099):
        moment = datetime.datetime(year, 1, 1, 1, tzinfo=datetime.UTC)
        assert parse_date(str(int(moment.timestamp()) * unit)) == moment
    for year in (1970, 1989, 2100, 2150):
        moment = datetime.datetime(year, 1, 1, tzinfo=datetime.UTC)
        assert parse_date(str(int(moment.timestamp()) * unit)) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "yesterday", "05/03/2024", "2024-13-01", "99999-01-01", "nan", "inf", "1e400", "9" * 400, "12:00"),
        *("-1", "0", "202403", "2024123", "20240230", "00000000", "1599", "2200", "2024030510"),
        *("1445-08-24", "1403/01/15", "2567-03-05", "0001-01-01", "9999-12-31T23:59:59Z", "2023-366", "2024-000"),
        *("2024-03-05T24:30:00", "2024-03-05T24:00:05", "2024-03-05T25:00:00", "2024-3-32", "2024-1-2-3"),
        *("1990123123", "2024-366a", "2024/03-05", "1e-5", "2024.03", "\x00"),
    ],
)
def test_what_is_no_date(text):
    assert parse_date(text) is None
    assert date_key(text) == NO_DATE
