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
    assert parse_date("-86400") == datetime.datetime(1969, 12, 31, tzinfo=utc)


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "05/03/2024", "2024-13-01", "99999-01-01", "nan", "inf", "1e400", "9" * 400, "12:00", "\x00"],
)
def test_what_is_no_date(text):
    assert parse_date(text) is None
    assert date_key(text) == NO_DATE
