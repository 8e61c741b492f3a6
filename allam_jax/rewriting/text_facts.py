"""What a rewrite must not change: numbers, dates, links, quotations, names, as sets that can be compared.

Arabic-Indic and Persian digits, and the signs that group or divide digits, make no difference: ١٬٢٠٠٫٥ is 1,200.5.
Months have the same number in English and Arabic, so dates can also be compared with those of a translation.
"""

import re
from collections.abc import Container

from allam_jax.corpus.normalise import without_marks

_TO_ASCII = str.maketrans("٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹٫", "0123456789" * 2 + ".")
_SPACES = "\u00a0\u2009\u202f"  # that stand between the groups of a number
_NUMBER = re.compile(rf"(?:(?<![^\s(\[])[-−])?\d+(?:[.,،٫٬'’{_SPACES}]\d+)*")
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
_MONTH_OF = {
    name: number
    for number, names in enumerate(_MONTHS.strip().splitlines(), start=1)
    for name in names.strip().split("|")
}
_MONTH = "|".join(sorted(map(re.escape, _MONTH_OF), key=len, reverse=True))
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
_LEAST_QUOTED = 3  # words; fewer are a name or irony

Date = tuple[str, frozenset[int]]  # the year or "", and day and month, whose order is not always known


def numbers_of(text: str) -> set[str]:
    """The numbers outside of dates, as ASCII digits with a minus, without signs between groups and leading zeros."""
    return {_plain(match[0]) for match in _NUMBER.finditer(_DATE.sub(" ", _folded(text)))}


def dates_of(text: str) -> set[Date]:
    """The dates: numbers with two signs between them, and those with the name of a month.

    3/4/2024 and 4/3/2024 are the same date here, because texts use both orders.
    """
    found: set[Date] = set()
    for match in _DATE.finditer(_folded(text)):
        if match["sign"] or match["sign2"]:
            *others, last = sorted(map(int, re.findall(r"\d+", match[0])))
            found.add((str(last), frozenset(others)))
            continue
        month = _MONTH_OF[(match["month"] or match["month2"] or match["month3"]).lower()]
        day = match["day"] or match["day2"]
        year = match["year"] or match["year2"] or match["year3"] or ""
        found.add((year, frozenset({month, *([int(day)] if day else [])})))
    return found


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
