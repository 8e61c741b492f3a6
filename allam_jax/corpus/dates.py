"""Dates of documents in the forms that data sets use, as moments."""

import datetime
import re
from email.utils import parsedate_to_datetime

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_DIGITS = str.maketrans("٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹", "0123456789" * 2)
_NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:[eE]\+?\d+)?")
_YEAR_FIRST = re.compile(r"(\d{4})[/.](\d{1,2})[/.](\d{1,2})(?!\d)")
_ZONE = re.compile(r"\s*(?:Z|UTC|GMT)$|\s+(?=[+-]\d\d:?\d\d$)", re.IGNORECASE)
# Forms by their length, where they make a date of these years.
_COMPACT = {4: "%Y", 7: "%Y-%m", 8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_YEARS = range(1800, 2200)


def parse_date(text: str) -> datetime.datetime | None:
    """The moment that a date means, with a zone (UTC where it names none); None for what is no date.

    Understood: ISO 8601, with white space or slashes too (`2024/03/05 10:11`); years alone; 8, 12 or 14 digits as in
    the indices of web archives; seconds, milliseconds, microseconds and nanoseconds since 1970, told apart by their
    size; and RFC 2822 (`Tue, 05 Mar 2024 10:11:12 GMT`). `05/03/2024`, which means two days, is none of them.
    """
    text = text.strip().translate(_DIGITS)
    try:
        moment = _compact(text) if text.isdecimal() or len(text) == 7 else _iso(text)
        if moment is None and _NUMBER.fullmatch(text):
            moment = _since_1970(float(text))
        if moment is None:
            moment = _iso(_ZONE.sub("+00:00" if text[-1:].isalpha() else "", _YEAR_FIRST.sub(_with_dashes, text, 1)))
        return moment or _rfc_2822(text)
    except OverflowError:
        return None


def microseconds(moment: datetime.datetime) -> int:
    """Microseconds from 1970 to a moment."""
    return (moment - _EPOCH) // datetime.timedelta(microseconds=1)


def _iso(text: str) -> datetime.datetime | None:
    try:
        return _zoned(datetime.datetime.fromisoformat(text))
    except ValueError:
        return None


def _compact(text: str) -> datetime.datetime | None:
    form = _COMPACT.get(len(text))
    try:
        moment = _zoned(datetime.datetime.strptime(text, form)) if form else None
    except ValueError:
        return None
    return moment if moment and moment.year in _YEARS else None


def _since_1970(number: float) -> datetime.datetime | None:
    for unit in (1.0, 1e3, 1e6, 1e9):
        if abs(number / unit) < 1e11:  # seconds of 5,138 years
            return _EPOCH + datetime.timedelta(seconds=number / unit)
    return None


def _rfc_2822(text: str) -> datetime.datetime | None:
    try:
        return _zoned(parsedate_to_datetime(text)) if re.search("[A-Za-z]{3}", text) else None
    except (ValueError, IndexError, TypeError):
        return None


def _with_dashes(match: re.Match[str]) -> str:
    year, month, day = match.groups()
    return f"{year}-{month:0>2}-{day:0>2}"


def _zoned(moment: datetime.datetime) -> datetime.datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
