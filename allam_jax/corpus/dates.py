"""Dates of documents in the forms that data sets use, as moments."""

import calendar
import datetime
import re
from email.utils import parsedate_to_datetime

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_DAY = datetime.timedelta(days=1)
_DIGITS = str.maketrans("٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹", "0123456789" * 2)
_NUMBER = re.compile(r"\d+(?:\.\d*)?(?:[eE]\+?\d+)?")
_YEAR_FIRST = re.compile(r"^(\d{4})(?:([/.-])(\d{1,2})\2|([/-])(?=\d{1,2}$))(\d{1,2})(?!\d)")
_MONTH = re.compile(r"\d{4}-\d\d")
_DAY_OF_YEAR = re.compile(r"(\d{4})-(\d{3})(?!\d)")
_MIDNIGHT = re.compile(r"([T ])24(:?)(00(?:\2(?:00(?:[.,]0+)?))?)(?![\d:.,])")
_ZONE = re.compile(r"\s*(?:Z|UTC|GMT)$|\s+(?=[+-]\d\d:?\d\d$)", re.IGNORECASE)
# Forms of digits alone, by their length.
_COMPACT = {4: "%Y", 8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
# Other years are those of other calendars, such as the Hijri one, or stand for no date.
YEARS = range(1600, 2200)
# Clocks count from 1970. Numbers outside of these years are no moments.
_CLOCK_YEARS = range(1990, 2100)


def parse_date(text: str) -> datetime.datetime | None:
    """The moment that a date means, with a zone (UTC where it names none); None for what is no date of `YEARS`.

    Understood: ISO 8601, also with white space, slashes or single digits (`2024/3/5 10:11`); months and years alone; 8,
    12 or 14 digits as in the indices of web archives; seconds, milliseconds, microseconds and nanoseconds since 1970
    for the years 1990 to 2099, told apart by their size; and RFC 2822 (`Tue, 05 Mar 2024 10:11:12 GMT`). `05/03/2024`
    and ten digits that are an hour of 1990 to 2099 too (`2024030510`) mean two moments; they are none.
    """
    text = text.strip().translate(_DIGITS)
    try:
        if _NUMBER.fullmatch(text):
            moment = _compact(text, _COMPACT.get(len(text))) or _since_1970(text)
        else:
            moment = _written(text) or _rfc_2822(text)
    except OverflowError:
        return None
    return moment if moment and moment.year in YEARS else None


def microseconds(moment: datetime.datetime) -> int:
    """Microseconds from 1970 to a moment."""
    return (moment - _EPOCH) // datetime.timedelta(microseconds=1)


def _written(text: str) -> datetime.datetime | None:
    """The moment of a date in ISO 8601, or nearly so."""
    if moment := _iso(text):
        return moment
    if match := _DAY_OF_YEAR.match(text):
        year, day = int(match[1]), int(match[2])
        if year not in YEARS or not 1 <= day <= 365 + calendar.isleap(year):
            return None
        text = str(datetime.date(year, 1, 1) + (day - 1) * _DAY) + text[match.end() :]
    text, midnights = _MIDNIGHT.subn(r"\g<1>00\2\3", _YEAR_FIRST.sub(_with_dashes, text), count=1)
    moment = _iso(_ZONE.sub("+00:00" if text[-1:].isalpha() else "", text))
    return moment + midnights * _DAY if moment else None


def _iso(text: str) -> datetime.datetime | None:
    try:
        return _zoned(datetime.datetime.fromisoformat(f"{text}-01" if _MONTH.fullmatch(text) else text))
    except ValueError:
        return None


def _compact(text: str, form: str | None) -> datetime.datetime | None:
    try:
        moment = _zoned(datetime.datetime.strptime(text, form)) if form and text.isdecimal() else None
    except ValueError:
        return None
    return moment if moment and moment.year in YEARS else None


def _since_1970(text: str) -> datetime.datetime | None:
    hour = _compact(text, "%Y%m%d%H") if len(text) == 10 else None
    if hour and hour.year in _CLOCK_YEARS:
        return None
    for unit in (1.0, 1e3, 1e6, 1e9):
        seconds = float(text) / unit
        if _CLOCK_START <= seconds < _CLOCK_END:
            return _EPOCH + datetime.timedelta(seconds=seconds)
    return None


def _rfc_2822(text: str) -> datetime.datetime | None:
    try:
        return _zoned(parsedate_to_datetime(text)) if re.search("[A-Za-z]{3}", text) else None
    except (ValueError, IndexError, TypeError):
        return None


def _with_dashes(match: re.Match[str]) -> str:
    year, _, month, _, last = match.groups()
    return f"{year}-{month:0>2}-{last:0>2}" if month else f"{year}-{last:0>2}"


def _zoned(moment: datetime.datetime) -> datetime.datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


_CLOCK_START, _CLOCK_END = (
    datetime.datetime(year, 1, 1, tzinfo=datetime.UTC).timestamp() for year in (_CLOCK_YEARS.start, _CLOCK_YEARS.stop)
)
