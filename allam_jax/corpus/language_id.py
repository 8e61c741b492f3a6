"""Language identification with fastText's lid.176 (Joulin et al. 2016), offline, with the model from the catalog.

Vowel marks lower the model's score: its median is 0.71 on hadith as printed, and 0.97 on the same texts without marks.
Remove the marks first (`normalise.without_marks`).
"""

import functools
import tempfile
from pathlib import Path
from typing import Any

import langcodes

from allam_jax.corpus import catalog
from allam_jax.corpus.fasttext_classifier import neutral
from allam_jax.errors import UserError

# The labels of lid.176: ISO 639-1 codes, and ISO 639-3 codes of languages that have none.
_LABELS = """
    af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de diq
    dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is
    it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl
    my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh
    si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh
"""
LANGUAGES = frozenset(_LABELS.split())
_VARIETIES = {"arz": "ar"}  # Egyptian Arabic has a class of its own, and is Arabic for a source


def check_language(code: str, *, key: str) -> None:
    """UserError for what is no language code, and for another code of a language of `LANGUAGES` (`arb` is `ar`)."""
    if code in LANGUAGES:
        return
    try:
        wanted = _standard(code)
    except langcodes.LanguageTagError:
        raise UserError(f"{key} = {code[:60]!r}: no language code; give the ISO 639-1 code, such as ar") from None
    same = next((known for known in sorted(LANGUAGES) if _standard(known) == wanted), None)
    if same or not (code.isascii() and code.isalpha() and code.islower()):
        raise UserError(f"{key} = {code[:60]!r}: give {same or wanted!r}, the code that tags and repairs know it by")


def _standard(code: str) -> str:
    """The code of the language, or of the macrolanguage that it belongs to, without script and territory."""
    return langcodes.Language.get(langcodes.standardize_tag(code, macro=True)).language or ""


def whole_language(label: str) -> str:
    """The language that a label of the identifier is a variety of, or itself."""
    return _VARIETIES.get(label, label)


@functools.lru_cache(maxsize=1)
def _model() -> Any:
    import fasttext

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "lid.176.ftz"
        path.write_bytes(catalog.read_asset("language_id"))
        return fasttext.load_model(str(path))


def identify(unmarked: str, *, count: int = 3) -> dict[str, float]:
    """The most probable languages of a text without vowel marks: code -> probability, the best first.

    Codes are ISO 639-1 where the language has one.
    """
    labels, scores = _model().predict(neutral(unmarked).replace("\n", " "), k=count)
    return {
        label.removeprefix("__label__"): min(float(score), 1.0) for label, score in zip(labels, scores, strict=True)
    }
