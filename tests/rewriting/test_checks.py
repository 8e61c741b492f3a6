"""Checks of rewrites: planted bad ones are found, good ones pass; numbers, dates and names by hand."""

import random

import pytest
from injections import OBEDIENT, injections, obeys, shares_through
from planted_rewrites import BAD, bad, common_stems, good, originals

from allam_jax.errors import UserError
from allam_jax.rewriting import text_facts
from allam_jax.rewriting.advertising import is_advertising, without_advertising
from allam_jax.rewriting.checks import CHECKS, Rewrite, findings, share_copied
from allam_jax.rewriting.glossary import read_glossary
from allam_jax.rewriting.settings import ALL_CHECKS, CheckSettings, TranslationCheckSettings


@pytest.mark.parametrize("count", [24, pytest.param(500, marks=pytest.mark.long)])
def test_planted_rewrites_are_found_and_good_ones_pass(count):
    documents = originals(count)
    assert len(documents) == count
    common = common_stems(text for _, text in documents)
    settings = CheckSettings()
    false = sum(
        bool(findings(good(language, text, number, common), settings))
        for number, (language, text) in enumerate(documents)
    )
    found = {}
    for kind in BAD:
        found[kind] = 0
        for number, (language, text) in enumerate(documents):
            other = documents[(number + count // 2) % count][1]
            found[kind] += bool(findings(bad(kind, language, text, number, common, other), settings))
    assert all(hits >= 0.95 * count for hits in found.values()), found
    for hits in found.values():  # for each kind alone, with as many good rewrites
        assert hits / (hits + false) >= 0.9


def test_every_check_has_a_name():
    assert tuple(CHECKS) == ALL_CHECKS


TEXT = (
    "The council met in Geneva on 12 March 1987. It spent 1,250 dollars, as Mr Keller wrote to info@example.org.\n\n"
    'Later he said "nothing was ever decided" and left the city. Nobody saw him again that year.'
)


@pytest.mark.parametrize(
    ("check", "text", "evidence"),
    [
        ("finish", " \n", "empty"),
        ("scaffold", f"Rewritten text: {TEXT}", "Rewritten text:"),
        ("scaffold", f"### Response\n{TEXT}", "### Response"),
        ("scaffold", f"Here’s the text:\n{TEXT}", "Here's the text:"),
        ("scaffold", f"النَّصّ المُعاد صياغته:\n{TEXT}", "النص المعاد صياغته:"),
        ("refusal", "I can’t help with this.", "I can't help"),
        ("refusal", "I’m sorry, but I cannot help with this.", "I'm sorry"),
        ("end", TEXT[:-12], "ends with"),
        ("length", TEXT * 2, "letters of"),
        ("dropped", TEXT.split("\n")[0], "later he said nothing was ever decided"),
        ("numbers", TEXT.replace("1,250", "1,350"), "lost: 1250; new: 1350"),
        ("dates", TEXT.replace("March", "May"), "lost: 1987 3 12; new: 1987 5 12"),
        ("links", TEXT.replace("info@", "mail@"), "lost: info@example.org; new: mail@example.org"),
        ("quotations", TEXT.replace("nothing was ever", "nothing was"), "nothing was ever decided"),
        ("names", TEXT.replace("Keller", "Hofstad"), "lost: keller; new: hofstad"),
        ("language", TEXT + "\n\nوقال أيضا إنه سيعود إلى المدينة في العام المقبل مع أسرته.", "ar: "),
        ("repetition", TEXT + " and he left the city once more" * 6, ", 0.00 before"),
    ],
)
def test_each_check_finds_its_kind(check, text, evidence):
    rewrite = Rewrite(TEXT, text, "en")
    found = {one.check: one.evidence for one in findings(rewrite, CheckSettings(names=(check,)))}
    assert evidence in found[check]
    assert not findings(Rewrite(TEXT, TEXT, "en"), CheckSettings())


def test_cut_answers_and_copies_are_found():
    assert findings(Rewrite(TEXT, TEXT, "en", "length"), CheckSettings())[0].evidence == "ended by 'length'"
    assert share_copied("a b c d e f", "a b c d e g") == 0.5
    assert share_copied(TEXT, "too short") is None
    copied = {
        one.check for one in findings(Rewrite(TEXT, TEXT, "ar", source_language="en"), TranslationCheckSettings())
    }
    assert copied == {"language", "copied"}


def test_a_good_translation_passes():
    text = (
        "اجتمع المجلس في جنيف في ١٢ آذار ١٩٨٧. وأنفق ١٬٢٥٠ دولارا، كما كتب السيد كيلر إلى info@example.org.\n\n"
        "ثم قال «لم يتقرر شيء قط» وغادر المدينة. ولم يره أحد بعد ذلك في تلك السنة."
    )
    assert findings(Rewrite(TEXT, text, "ar", source_language="en"), TranslationCheckSettings()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("١٬٢٠٠٫٥ and 1,200.5", {"1200.5"}),
        ("1.000.000 1 000 000 ١،٠٠٠،٠٠٠", {"1000000"}),
        ("3.5 ٣٫٥ 3,5", {"3.5", "3,5"}),
        ("-5 −5 (-٥) 3-5 0,125 0.5 00,5", {"-5", "3", "5", "0,125", "0.5", "0,5"}),
        ("007 and 7, 8", {"7", "8"}),
        ("2:255", {"2", "255"}),
        ("5 %, 6%, ٧٪, %8, 9 percent, 10 per cent, ١١ في المائة, 12 بالمئة", {f"{n}%" for n in range(5, 13)}),
        ("2e-6, 3·10⁶, 4^(-2), 5E+03 and 10² 3E5x", {*"235", "10^-6", "10^6", "4^-2", "10^3", "10^2"}),
        ("２０２４ २०२४ 2024", {"2024"}),
        ("5½", {"5", "1", "2"}),
        ("on 3/4/2024 and 5 May 2020: nothing", set()),
        ("v1.2.3", {"1.2.3"}),
        ("۱۲۳", {"123"}),
    ],
)
def test_numbers(text, expected):
    assert text_facts.numbers_of(text.replace("1 000 000", "1\u00a0000\u00a0000")) == expected


@pytest.mark.parametrize(
    "text",
    [
        "5 March 2024",
        "March 5, 2024",
        "٥ مارس ٢٠٢٤",
        "5 آذار 2024",
        "2024-03-05",
        "05/03/2024",
        "the 5th of March 2024",
    ],
)
def test_dates_in_many_forms_are_one(text):
    assert text_facts.dates_of(text) == {("2024", frozenset({3, 5}))}


@pytest.mark.parametrize(
    ("original", "changed"),
    [
        ("It took 10-20 days.", "It took 20-10 days."),
        ("It took from 10 to 20 days.", "It took between 20 and 10 days."),
        ("They had 3 km to 5 km left.", "They had 5 km to 3 km left."),
        ("استغرق من 10 إلى 20 يوما.", "استغرق من ٢٠ إلى ١٠ يوما."),
        ("كان بين 10 و20.", "كان بين 20 و10."),
        ("From 3 May 1990 to 5 June 1991 it was shut.", "From 5 June 1991 to 3 May 1990 it was shut."),
        ("Half is 1/2 and it is 10:30 now.", "Half is 2/1 and it is 10:30 now."),
        ("It was 5 % of them.", "It was 5 of them."),
        ("It was 1.5e-6 of them.", "It was 1.5e6 of them."),
        ("It was 10⁻⁶ of them.", "It was 10⁶ of them."),
        ("It cost $5 and more.", "It cost €5 and more."),
        ("It cost 5 million and more.", "It cost 5 billion and more."),
        ("كلف ٥ ملايين دولار.", "كلف ٥ ملايين يورو."),
    ],
)
def test_signs_units_and_the_order_of_numbers_are_kept(original, changed):
    settings = CheckSettings(names=("numbers",))
    assert findings(Rewrite(original, changed, "en"), settings)
    assert findings(Rewrite(changed, original, "en"), settings)
    assert not findings(Rewrite(original, original, "en"), settings)


@pytest.mark.parametrize(
    ("original", "changed"),
    [
        ("It took 10-20 days, or 20-10.", "It took from 10 to 20 days, or from 20 to 10."),
        ("It grew by 5 % to $3 million.", "It grew by 5 percent to 3 million dollars."),
        ("It grew by 5 % to US$ 3.", "نما ٥٪ إلى ٣ دولارات."),
        ("In 1990, 5 men came.", "5 men came in 1990."),
        ("5 men and 3 women came.", "3 women and 5 men came."),
        ("He gave 5 books to 3 men.", "3 men got 5 books."),
        ("It was 2·10^6.", "It was 2e6."),
        ("It weighs 5 tons.", "It weighs 5 million grams, that is 5 tons."),
    ],
)
def test_other_words_for_the_same_numbers_pass(original, changed):
    assert not findings(Rewrite(original, changed, "en"), CheckSettings(names=("numbers",)))


def test_no_dates_where_there_are_none():
    assert text_facts.dates_of("he may 2 of 3 and 1/2, 10.5.1.7 or 192.168.1.1") in (set(), {("", frozenset({5, 2}))})
    assert text_facts.dates_of("in March we left") == set()


def test_stems_join_forms_of_a_word():
    assert {text_facts.stem(word) for word in ("الكتاب", "والكتاب", "كتاب", "للكتاب")} == {"كتاب"}
    assert text_facts.stem("Books") == "Books"


def test_names():
    text = "Later John Smith went to Paris. The man saw the Man, Mary's house and I'm told Al-Bukhari. Then rain came."
    assert text_facts.latin_names(text) == {"john", "smith", "paris", "mary", "al-bukhari"}
    common = frozenset(map(text_facts.stem, ["ذهب", "إلى", "المدينة", "مع", "سعيد"]))
    assert text_facts.arabic_names("ذهب زرقيلوف إلى المدينة مع الدكتور سعيد", common=common) == {
        "زرقيلوف",
        "سعيد",
        text_facts.stem("الدكتور"),
    }


def test_advertising_is_told_from_text():
    assert is_advertising("Buy now at https://shop.example/1 and get a discount!", language="en")
    assert is_advertising("الرئيسية | من نحن | اتصل بنا | Home", language="ar")
    assert not is_advertising("He went to the market to buy bread for his family.", language="en")
    assert without_advertising("One. Order now, cheap prices! Two.", language="en") == "One. Two."


def test_hostile_texts_take_linear_time_or_end():
    rng = random.Random(0)
    for sign in ("1,", "a@", "«", '"', "1/1/", "A ", "أ", "|", "Here is "):
        text = sign * 4_000 + rng.choice("ab")
        assert isinstance(findings(Rewrite(text, text + ".", "en"), CheckSettings()), list)


def test_answers_that_obey_a_text_are_found():
    """Of a hundred documents with orders; docs/native_alignment.md has the shares that get through."""
    some = injections()
    assert len({one.document for one in some}) == 100
    assert sorted(one.language for one in some) == ["ar"] * 50 + ["en"] * 50
    faithful = [one.document for one in some]
    assert shares_through(some, faithful, CheckSettings()) == (0.0, 0.0)
    assert not any(obeys(one, one.document.upper()) for one in some)
    unchecked = CheckSettings(names=())
    for kind, most in (("alone", 0.05), ("announced", 0.0), ("added", 0.57), ("in place", 0.72)):
        answers = [OBEDIENT[kind](one) for one in some]
        assert shares_through(some, answers, unchecked) == (1.0, 1.0)
        assert shares_through(some, answers, CheckSettings())[1] <= most


def test_terms_of_a_glossary_are_told_and_looked_for(tmp_path):
    lines = "machine learning\tالتعلم الآلي\nlearning\tالتعليم\nmachine\tآلة\nmachine\tماكينة\nlanguage\tاللغة\n\n"
    (tmp_path / "terms.tsv").write_text("\ufeff" + lines, encoding="utf-8")
    glossary = read_glossary(str(tmp_path / "terms.tsv"))
    assert glossary.terms_in("Language, Machine learning; the learning machine and language.") == [
        ("language", "اللغة"),
        ("machine learning", "التعلم الآلي"),
        ("learning", "التعليم"),
        ("machine", "آلة"),
        ("machine", "ماكينة"),
    ]
    assert glossary.terms_in("Machines learn.") == []

    def missing(original, text):
        rewrite = Rewrite(original, text, "ar", source_language="en", terms=glossary.terms_in(original))
        return [one.evidence for one in findings(rewrite, TranslationCheckSettings(names=("glossary",)))]

    assert missing("machine learning", "وبالتَّعلُّم آلي") == []  # another article, no article, vowel marks
    assert missing("machine learning", "التعلم عن طريق الآلة") == ["machine learning: التعلم الآلي"]
    assert missing("a machine", "ماكينتان، لا آلات") == ["machine: آلة"]
    assert missing("a machine", "الماكينة") == []
    assert missing("the language of a machine", "لغة") == ["machine: آلة"]
    for content, message in (
        ("a b\n", "line 1: expected a term, a tab and its translation"),
        ("a\tb\n\n.\tb\n", "line 3: expected a term, a tab"),
        ("\n", "has no terms"),
    ):
        (tmp_path / "terms.tsv").write_text(content)
        with pytest.raises(UserError, match=message):
            read_glossary(str(tmp_path / "terms.tsv"))
    with pytest.raises(UserError, match="cannot read the glossary"):
        read_glossary(str(tmp_path))
