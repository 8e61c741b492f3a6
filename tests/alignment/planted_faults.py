"""Conversations of real texts with planted faults, and which row has which."""

import random

from allam_jax.corpus import catalog

_ASKS = {
    "en": ("What does the report number {} say about {}?", "Explain the tradition {} that begins with {}."),
    "ar": ("ماذا يقول الحديث رقم {} الذي أوله {}؟", "اشرح الحديث {} الذي أوله {}."),
}
KINDS = {  # what is planted -> the fault that it is
    "empty": "empty",
    "blank": "empty",
    "duplicated": "duplicate",
    "near": "near-duplicate",
    "language": "wrong language",
    "cut": "cut",
    "labels": "roles swapped",
    "texts": "roles swapped",
    "contaminated": "evaluation text",
    "repeated": "repetition",
    "scaffold": "scaffold",
}


def conversations(language: str, *, count: int, seed: int) -> list[list[str]]:
    """Texts of user and model in turn; replies are whole sentences of hadith collections."""
    source = {"en": "sahih_muslim_en", "ar": "sahih_muslim_ar"}[language]
    found, draw = [], random.Random(seed)
    ends = set()  # hadith collections tell the same twice
    for document in catalog.documents(source):
        words = document.text.split()
        if len(words) >= 30 and (end := tuple(words[:90][-6:])) not in ends:
            ends.add(end)
            reply = " ".join(words[:90]).rstrip(" .،,:;\"'") + "."
            found.append([draw.choice(_ASKS[language]).format(len(found), " ".join(words[:3])), reply])
        if len(found) == count:
            return found
    raise AssertionError(f"{source} has {len(found)} texts")


def planted(*, count: int, share: float, seed: int) -> tuple[list[dict], list[str], dict[int, str]]:
    """Records, texts of an evaluation, and row -> fault; each kind is planted into this share of the rows."""
    draw = random.Random(seed)
    each = max(1, round(share * count))
    chats = {language: conversations(language, count=count // 2 + each, seed=seed) for language in ("en", "ar")}
    spare = {language: own[count // 2 :] for language, own in chats.items()}
    rows = [(language, texts) for language, own in chats.items() for texts in own[: count // 2]]
    draw.shuffle(rows)
    places = draw.sample(range(len(rows)), each * len(KINDS))
    evaluation = [" ".join(f"item{draw.randrange(10**6)}" for _ in range(20)) for _ in range(2 * each)]
    truth, records, more = {}, [], []
    kinds = {place: kind for number, kind in enumerate(KINDS) for place in places[each * number : each * (number + 1)]}
    for place, (language, (asked, reply)) in enumerate(rows):
        kind = kinds.get(place, "")
        words = reply.split()
        roles = ("user", "assistant")
        if kind == "empty":
            reply = ""
        elif kind == "blank":
            reply = "…"
        elif kind == "language":
            reply = spare["ar" if language == "en" else "en"].pop()[1]
        elif kind == "cut":
            reply = " ".join(words[: draw.randrange(20, len(words) - 3)]).rstrip(".؟?!…:;,،\"'»)]}")
        elif kind == "labels":
            roles = ("assistant", "user")
        elif kind == "texts":
            asked, reply = reply, asked
        elif kind == "contaminated":
            reply = f"{' '.join(words[:8])} {draw.choice(evaluation)} {' '.join(words[8:])}"
        elif kind == "repeated":
            reply = f"{' '.join(words[:10])} {' '.join(words[10:16])} " + " ".join(words[10:16] * 6) + "."
        elif kind == "scaffold":
            reply = {"en": "Rewritten text: ", "ar": "النص المعاد كتابته: "}[language] + reply
        record = {
            "messages": [{"role": role, "content": text} for role, text in zip(roles, (asked, reply), strict=True)]
        }
        records.append(record)
        if kind in ("duplicated", "near"):
            copied = reply if kind == "duplicated" else " ".join([*words[:-2], "other", words[-1]])
            messages = [record["messages"][0], {"role": "assistant", "content": copied}]
            more.append(({"messages": messages}, kind))
        elif kind:
            truth[place] = KINDS[kind]
    for record, kind in more:
        truth[len(records)] = KINDS[kind]
        records.append(record)
    return records, evaluation, truth
