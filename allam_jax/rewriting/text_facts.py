"""What a rewrite must not change: numbers, dates, links, quotations, names, as sets that can be compared.

Arabic-Indic and all other decimal digits, and the signs that group or divide digits, make no difference: ١٬٢٠٠٫٥ is
1,200.5. Months have the same number in English and Arabic, so dates can also be compared with those of a translation.
"""

import functools
import re
import unicodedata
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from allam_jax.corpus.normalise import without_marks

_DECIMALS = {code: str(unicodedata.decimal(chr(code))) for code in range(0x660, 0x10000) if chr(code).isdecimal()}
_FRACTIONS = {ord(sign): f" {unicodedata.normalize('NFKC', sign)} " for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
_TO_ASCII = {**_DECIMALS, **_FRACTIONS, ord("٫"): ".", ord("٪"): "%", 0x2044: "/"}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻−", "0123456789+--")
_SPACES = "\u00a0\u2009\u202f"  # that stand between the groups of a number
_NUMBER = re.compile(
    rf"(?P<percent>%\s?)?(?P<digits>(?:(?<![^\s(\[])[-−])?\d+(?:[.,،٫٬'’{_SPACES}]\d+)*)"
    r"(?:[eE](?P<e>[-+−]?\d{1,4})(?!\w)|\^[({]?(?P<power>[-+−]?\d+)[)}]?|(?P<raised>[⁺⁻]?[⁰¹²³⁴-⁹]+))?"
    r"(?P<percent2>\s?(?:%|per ?cent\b|بالم(?:ئ|ائ)ة|في الم(?:ئ|ائ)ة))?",
    re.IGNORECASE,
)
_GROUPED = re.compile(rf"[1-9]\d{{,2}}(?:[,،٬'’{_SPACES}]\d{{3}})+(?:\.\d+)?|\d{{1,3}}(?:\.\d{{3}}){{2,}}")

# The Gregorian months in English and as two parts of the Arab world name them, then those of the Hijri calendar.
_MONTHS = """
    january|jan|يناير|كانون الثاني
    february|feb|فبراير|شباط
    march|mar|مارس|آذار
    april|apr|أبريل|ابريل|نيسان
    may|مايو|أيار
    june|jun|يونيو|يونية|حزيران
    july|jul|يوليو|يولية|تموز
    august|aug|أغسطس|اغسطس|آب
    september|sept|sep|سبتمبر|أيلول
    october|oct|أكتوبر|اكتوبر|تشرين الأول
    november|nov|نوفمبر|تشرين الثاني
    december|dec|ديسمبر|كانون الأول
    muharram|المحرم|محرم
    safar|صفر
    rabi al-awwal|ربيع الأول
    rabi al-thani|ربيع الآخر|ربيع الثاني
    jumada al-ula|جمادى الأولى
    jumada al-akhirah|جمادى الآخرة|جمادى الثانية
    rajab|رجب
    shaban|شعبان
    ramadan|رمضان
    shawwal|شوال
    dhul-qadah|ذو القعدة|ذي القعدة
    dhul-hijjah|ذو الحجة|ذي الحجة
"""
_SIZES = """
    thousand|thousands|ألف|الف|ألفا|آلاف
    million|millions|مليون|مليونا|ملايين
    billion|billions|مليار|مليارا|مليارات|بليون
    trillion|trillions|تريليون|تريليونا|تريليونات
"""
_CURRENCIES = """
    $|us$|usd|dollar|dollars|دولار|دولارا|دولارات
    €|eur|euro|euros|يورو
    £|gbp|pound sterling|pounds sterling|جنيه إسترليني|جنيها إسترلينيا
    ¥|jpy|yen|ين
    sar|riyal|riyals|ريال|ريالا|ريالات
    aed|dirham|dirhams|درهم|درهما|دراهم
"""


def _numbered(lines: str) -> dict[str, int]:
    """Name -> number of its line, from 1."""
    named = enumerate(lines.strip().splitlines(), start=1)
    return {name: number for number, names in named for name in names.strip().split("|")}


def _any_of(names: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, names), key=len, reverse=True))


_MONTH_OF, _SIZE_OF, _CURRENCY_OF = map(_numbered, (_MONTHS, _SIZES, _CURRENCIES))
_MONTH = _any_of(_MONTH_OF)
_UNITS_BEHIND = re.compile(
    rf"(?:\s?(?P<size>{_any_of(_SIZE_OF)})(?!\w))?(?:\s?(?P<currency>{_any_of(_CURRENCY_OF)})(?!\w))?", re.IGNORECASE
)
_CURRENCY_BEFORE = re.compile(rf"(?<!\w)(?P<currency>{_any_of(_CURRENCY_OF)})\s?$", re.IGNORECASE)
_LONGEST_UNIT = 24  # characters
# What orders the number or date before it and the one behind it: 3-5, 1/2, 10:30, 3 km to 5 km.
_ORDER = re.compile(r"\s?[-–—−/:]\s?|\s(?:\w+ )?(?:to|until|till|through|إلى|الى|حتى)\s(?:\w+ )?", re.IGNORECASE)
_AND = re.compile(r"\s(?:\w+ )?(?:and\s|و)(?:\w+ )?", re.IGNORECASE)  # which does so behind `between`
_BETWEEN = re.compile(r"\b(?:between|بين) (?:\w+ )?$", re.IGNORECASE)
_LONGEST_GAP = 40  # characters
_DATE = re.compile(
    rf"(?<!\d)(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of| من)? (?P<month>{_MONTH})\.?,?"
    r"(?:(?: عام| سنة)? (?P<year>\d{3,4})(?!\d))?"
    rf"|(?<!\w)(?P<month2>{_MONTH})\.? (?P<day2>\d{{1,2}})(?:st|nd|rd|th)?(?!\d),?(?: (?P<year2>\d{{3,4}})(?!\d))?"
    rf"|(?<!\w)(?P<month3>{_MONTH})\.?,?(?: عام| سنة)? (?P<year3>\d{{4}})(?!\d)"
    r"|(?<![\d/.-])(?:\d{3,4}(?P<sign>[/.-])\d{1,2}(?P=sign)\d{1,2}|\d{1,2}(?P<sign2>[/.-])\d{1,2}(?P=sign2)\d{3,4})"
    r"(?![\d/-]|\.\d)",
    re.IGNORECASE,
)
_LINK = re.compile(r"(?:https?://|www\.)[^\s<>\"«»()\[\]{}]+|(?<![\w.])[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_QUOTATION = re.compile(r"«([^«»]+)»|“([^“”]+)”|\"([^\"\n]+)\"|﴿([^﴿﴾]+)﴾")
_PARTS = re.compile(r"[-/()\[\]]+")  # what joins the parts of a name
_LEAST_QUOTED = 3  # words; fewer are a name or irony

Date = tuple[str, frozenset[int]]  # the year or "", and day and month, whose order is not always known


def numbers_of(text: str) -> set[str]:
    """The numbers outside of dates, as ASCII digits with a minus, without signs between groups and leading zeros.

    Per cents have the sign, in whatever way they are written; powers are as 10^6, which 2e6 holds beside 2.
    """
    return {fact for match in _read(text).numbers for fact in _facts(match)}


def orders_of(text: str) -> set[tuple[str, str]]:
    """Neighbouring numbers or dates whose order says something: ranges, ratios, fractions, times of the day."""
    folded, dates, numbers = _read(text)
    found = [(match.span(), shown_date(_date(match))) for match in dates]
    found += [(match.span(), " ".join(_facts(match))) for match in numbers]
    found.sort()

    def are_ordered(begin: int, end: int, start: int) -> bool:
        if start - end > _LONGEST_GAP:
            return False
        return bool(
            _ORDER.fullmatch(folded, end, start)
            or (_AND.fullmatch(folded, end, start) and _BETWEEN.search(folded, max(begin - _LONGEST_GAP, 0), begin))
        )

    pairs = zip(found, found[1:], strict=False)
    return {(first, second) for ((begin, end), first), ((start, _), second) in pairs if are_ordered(begin, end, start)}


def units_of(text: str) -> set[tuple[str, str, int]]:
    """Numbers with a size (such as million) or a currency: the number, `size` or `currency`, and which."""
    folded, _, numbers = _read(text)
    found = set()
    for match in numbers:
        number = " ".join(_facts(match))
        behind = _UNITS_BEHIND.match(folded, match.end(), match.end() + _LONGEST_UNIT)
        before = _CURRENCY_BEFORE.search(folded, max(match.start() - _LONGEST_UNIT, 0), match.start())
        if behind and behind["size"]:
            found.add((number, "size", _SIZE_OF[behind["size"].lower()]))
        if named := (behind and behind["currency"]) or (before and before["currency"]):
            found.add((number, "currency", _CURRENCY_OF[named.lower()]))
    return found


def dates_of(text: str) -> set[Date]:
    """The dates: numbers with two signs between them, and those with the name of a month.

    3/4/2024 and 4/3/2024 are the same date here, because texts use both orders.
    """
    return set(map(_date, _read(text).dates))


def shown_date(date: Date) -> str:
    """A date as text: the year, then day and month, the smaller first."""
    year, rest = date
    return " ".join([year, *map(str, sorted(rest))]).strip()


def links_of(text: str) -> set[str]:
    """Addresses of the web and of mail, without the punctuation behind them."""
    return {match.rstrip(".,;:!?،؛؟'’”").rstrip("/").lower() for match in _LINK.findall(text)}


def quotations_of(text: str) -> set[str]:
    """Quoted passages of three words and more, as the words that `folded_words` gives, joined by spaces."""
    found = ((folded_words("".join(groups))) for groups in _QUOTATION.findall(text))
    return {" ".join(words) for words in found if len(words) >= _LEAST_QUOTED}


def folded_words(text: str) -> list[str]:
    """The words between white space in lower case, without vowel marks and without punctuation at their ends."""
    words = (word.strip(_PUNCTUATION) for word in _folded(text).casefold().split())
    return [word for word in words if word]


def stem(word: str) -> str:
    """A word without its Arabic article, conjunction and endings: light10 of Larkey, Ballesteros and Connell (2007)."""
    if len(word) < 4 or word.isascii():
        return word
    word = word.translate(_ALEFS)
    if word[0] == "و" and len(word) > 3:
        word = word[1:]
    prefix = next((one for one in _PREFIXES if word.startswith(one) and len(word) - len(one) >= 2), "")
    word = word[len(prefix) :]
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 2:
            word = word[: -len(ending)]
    return word


def word_forms(text: str) -> set[str]:
    """The words of a text as names may stand in another one: also without article, endings and genitive, and parts."""
    words = set(folded_words(text))
    parts = {part for word in words for part in _PARTS.split(word)}
    return words | {form for word in words | parts for form in (stem(word), without_genitive(word))}


def latin_names(text: str) -> set[str]:
    """Words in Latin script with a capital that no beginning of a sentence or line explains, in lower case.

    A word that the text also spells in lower case is none. In languages that write nouns with a capital, all nouns are.
    """
    lower = {*_LOWER.findall(text), *_NO_NAMES}
    names = {name.casefold() for name in _CAPITALISED.findall(text)} - lower
    return {bare for name in names if len(bare := without_genitive(name)) > 1}


def without_genitive(word: str) -> str:
    """A word without `'s` and without apostrophes and hyphens at its ends."""
    return word.removesuffix("'s").removesuffix("’s").strip("'’-")


def arabic_names(text: str, *, common: Container[str]) -> set[str]:
    """Stems of Arabic words that are names by this rule: not `common`, or behind a title such as الدكتور or behind بن.

    `common` holds stems of ordinary words. A name that is an ordinary word too is found behind a title only.
    """
    words = folded_words(text)
    found = set()
    for before, word in zip(["", *words], words, strict=False):
        if len(word) > 2 and _ARABIC_WORD.fullmatch(word) and (before in _TITLES or stem(word) not in common):
            found.add(stem(word))
    return found


def _folded(text: str) -> str:
    return without_marks(text).translate(_TO_ASCII)


class _Read(NamedTuple):
    folded: str
    dates: list[re.Match[str]]
    numbers: list[re.Match[str]]  # outside of dates, at their places


@functools.lru_cache(maxsize=4)  # several checks look at the same text
def _read(text: str) -> _Read:
    folded = _folded(text)
    rest = _DATE.sub(lambda match: " " * len(match[0]), folded)
    return _Read(folded, list(_DATE.finditer(folded)), list(_NUMBER.finditer(rest)))


def _date(match: re.Match[str]) -> Date:
    if match["sign"] or match["sign2"]:
        *others, last = sorted(map(int, re.findall(r"\d+", match[0])))
        return str(last), frozenset(others)
    month = _MONTH_OF[(match["month"] or match["month2"] or match["month3"]).lower()]
    day = match["day"] or match["day2"]
    return match["year"] or match["year2"] or match["year3"] or "", frozenset({month, *([int(day)] if day else [])})


def _facts(match: re.Match[str]) -> Iterator[str]:
    """What a match of `_NUMBER` says."""
    number = _plain(match["digits"])
    power = (match["e"] or match["power"] or match["raised"] or "").translate(_RAISED)
    if match["e"]:
        yield f"10^{int(power)}"
    elif power:
        number = f"{number}^{int(power)}"
    yield f"{number}%" if match["percent"] or match["percent2"] else number


def _plain(number: str) -> str:
    sign, number = ("-", number[1:]) if number[0] in "-−" else ("", number)
    if _GROUPED.fullmatch(number):
        parts = re.split(rf"[.,،٬'’{_SPACES}]", number)
        grouped, decimals = (parts[:-1], parts[-1]) if len(parts[-1]) != 3 else (parts, "")
        number = "".join(grouped) + (f".{decimals}" if decimals else "")
    return sign + re.sub(r"^0+(?=\d)", "", number)


_PUNCTUATION = "".join(map(chr, [*range(33, 48), *range(58, 65), *range(91, 97), *range(123, 127)])) + "،؛؟۔«»“”‘’…–—﴿﴾"
_ALEFS = str.maketrans("أإآٱ", "اااا")
_PREFIXES = ("وال", "بال", "كال", "فال", "ال", "لل")
_ENDINGS = ("ها", "ان", "ات", "ون", "ين", "يه", "ية", "ه", "ة", "ي")
_ARABIC_WORD = re.compile(r"[\u0620-\u064a\u0671-\u06d3]+")
_TITLES = frozenset(
    ("بن", "ابن", "السيد", "السيدة", "الدكتور", "الدكتورة", "الشيخ", "الأستاذ", "الأستاذة", "الملك", "الأمير", "المدعو")
)
_LATIN = "A-Za-z\u00c0-\u024f"
# A capital behind a word or comma; what follows ., !, ?, : or an opening sign may begin a sentence.
_CAPITALISED = re.compile(rf"(?<=[{_LATIN}\d,;)] )[A-Z\u00c0-\u00de][{_LATIN}'’-]*")
_LOWER = re.compile(rf"(?<![{_LATIN}])[a-z\u00df-\u00ff][{_LATIN}'’-]*")
_NO_NAMES = frozenset({"i", "i'm", "i've", "i'll", "i'd", "i’m", "i’ve", "i’ll", "i’d"})
