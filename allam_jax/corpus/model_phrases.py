"""What language models write around a text or in place of it: remnants of prompts, announcements, refusals.

Texts are searched without vowel marks and with straight apostrophes.
"""

import re

from allam_jax.corpus.normalise import without_marks

_CONTROL = r"<\|[^|<>\n]{1,40}\|>|\[/?INST\]|<</?SYS>>"
_HEADING = r"^[^\S\n]*#{2,} ?(?:instruction|response|input|output|human|assistant)\b"
_AGREES = "sure|certainly|of course"
_LABELS = (
    "human|assistant|user|system|instruction|response|(?:rewritten|original|arabic|english) text|analysis|translation"
    "|النص (?:المعاد كتابته|الأصلي|المترجم)|التحليل|الترجمة|المستخدم|المساعد|التعليمات"
)
_SPEAKS_OF_ITSELF = (
    r"\bas an ai (?:language )?model\b|(?:بصفتي|كوني|باعتباري) نموذج|كنموذج (?:لغوي|لغة)|نموذج لغوي كبير"
)
_SCAFFOLD_OF_CHATS = re.compile(
    rf"{_CONTROL}|{_HEADING}|^[^\S\n]*(?:{_LABELS}) ?:|^[^\S\n]*(?:{_AGREES})[,!]? here(?: is|'s)|{_SPEAKS_OF_ITSELF}",
    re.IGNORECASE | re.MULTILINE,
)

# A rewrite answers nobody, so more is wrong in it than in a reply.
_MORE_LABELS = (
    "(?:revised|corrected|edited|translated|improved|input|output|source) text"
    "|(?:original|rewritten|revised|corrected|edited|translated|improved|input|output|arabic|english|source)"
    " (?:version|document|passage)|rewrit(?:e|ten)|explanation|instructions|note|guidelines?"
    r"|(?:ال)?نص (?:ال)?(?:أصلي|اصلي|معاد|معدل|مترجم|منقح|مصحح)[^:\n]{0,20}|النص|إعادة الصياغة|الشرح|ملاحظة"
)
_ANNOUNCES = (
    rf"(?:here(?: is|'s| are)|(?:{_AGREES})[,!.]|below is|i have (?:rewritten|translated)|إليك|إليكم|فيما يلي|بالتأكيد"
    r"|بالطبع[،,!.])[^\n]{0,80}(?:[:：]|\n)"
)
_SCAFFOLD_OF_REWRITES = re.compile(
    rf"{_CONTROL}|</?s>|^```|{_HEADING}|^[^\w\n]*(?:(?:{_LABELS}|{_MORE_LABELS})\W{{0,4}}[:：]|{_ANNOUNCES})",
    re.IGNORECASE | re.MULTILINE,
)

_IS_SORRY, _CANNOT = r"i(?:'m| am) (?:sorry|unable|not able)", r"i (?:can(?:no|')t|can ?not|won't|will not)"
_IS_SORRY_IN_ARABIC, _CANNOT_IN_ARABIC = "عذرا|آسف|أعتذر|اعتذر|للأسف", "لا يمكنني|لا أستطيع|لا استطيع"
_REFUSAL = re.compile(
    rf"\b{_IS_SORRY}\b[^.\n]{{0,60}}\b(?:can(?:no|')t|can ?not|unable|not able|assist|help|rewrite|translate)"
    rf"|\b{_CANNOT} (?:assist|help|rewrite|translate|comply|provide|fulfil|process)|\bi must decline\b"
    r"|\bas an? (?:ai|artificial|large language)\b"
    rf"|(?:{_IS_SORRY_IN_ARABIC})[^.\n]{{0,40}}(?:لا (?:يمكن|أستطيع|استطيع|أقدر)|لن أ)"
    rf"|(?:{_CANNOT_IN_ARABIC}) (?:مساعدة|مساعدتك|إعادة|ترجمة|كتابة|تقديم|تلبية|المساعدة)"
    rf"|{_SPEAKS_OF_ITSELF}|(?:كنموذج|بصفتي|بوصفي|أنا) (?:نموذج)? ?(?:لغوي|لغة|ذكاء)",
    re.IGNORECASE,
)
_BEGINS_AS_REFUSAL = re.compile(
    rf"\W*(?:{_IS_SORRY}|sorry|{_CANNOT}|as an ai|{_IS_SORRY_IN_ARABIC}|{_CANNOT_IN_ARABIC})", re.IGNORECASE
)


def scaffold_in(reply: str) -> str:
    """The first remnant of a prompt, a role's name or a model's preamble in a reply; empty if there is none."""
    found = _SCAFFOLD_OF_CHATS.search(_folded(reply))
    return found[0].strip() if found else ""


def scaffolds_in_rewrite(text: str) -> list[str]:
    """What of a rewritten text is not the text: labels, announcements, control tokens, fences."""
    return [match[0].strip() for match in _SCAFFOLD_OF_REWRITES.finditer(_folded(text))]


def refusal_in(text: str) -> str:
    """The first words by which a model declines to rewrite or to help; empty if there are none."""
    found = _REFUSAL.search(_folded(text))
    return found[0] if found else ""


def begins_as_refusal(answer: str) -> bool:
    """Whether an answer begins as models do that decline to answer."""
    return _BEGINS_AS_REFUSAL.match(_folded(answer)) is not None


def _folded(text: str) -> str:
    return without_marks(text).replace("’", "'").replace("ʼ", "'")
