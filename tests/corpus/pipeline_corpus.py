"""A small crawl, written as a user's files, and configs of the corpus task over it."""

import json
import random

from allam_jax.corpus import pipeline
from allam_jax.corpus.corpus_plan import make_corpus_plan
from allam_jax.corpus.settings import CorpusSettings
from allam_jax.settings import read
from configs import base, corpus_rules

ALL_WORDS = """
كتاب قلم مدرسة بيت شجرة نهر جبل مدينة طريق سماء بحر
ليل نهار صديق أخ علم حياة يوم سنة وقت عمل نور
"""
WORDS = ALL_WORDS.split()


def texts(count, *, seed=0, words=60):
    """Random Arabic texts of several lines."""
    rng = random.Random(seed)
    return ["\n".join(" ".join(rng.choices(WORDS, k=words // 3)) for _ in range(3)) for _ in range(count)]


def write_crawl(folder, *, files=4, documents=40):
    """JSON Lines with addresses and dates: new texts, exact copies, near copies, copies of addresses."""
    folder.mkdir(parents=True)
    rng = random.Random(7)
    rows = []
    for number, text in enumerate(texts(files * documents)):
        address = f"https://site{number % 5}.example/{number}"
        kind = rng.random()
        if rows and kind < 0.1:
            text = rng.choice(rows)["text"].replace(" ", "  ") + " ."
        elif rows and kind < 0.2:
            words = rng.choice(rows)["text"].split(" ")
            words[rng.randrange(len(words))] = "تغيير"
            text = " ".join(words)
        elif rows and kind < 0.3:
            address = rng.choice(rows)["url"].replace("https://", "http://www.")
        elif kind < 0.35:
            text = "قصير"
        rows.append({"text": text, "id": f"d{number}", "url": address, "date": f"2024-01-{1 + number % 28:02d}"})
    for index in range(files):
        part = rows[index * documents : (index + 1) * documents]
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"{index}.jsonl").write_text(content, encoding="utf-8")
    return rows


def config(folder, **dedup):
    """The corpus task on it, with rules and all kinds of deduplication."""
    value = base.get_config("corpus")
    value.corpus.sources.crawl = base.documents(
        path=str(folder), language="ar", rules="arabic", remove=("tashkeel",), validation_share=0.1
    )
    value.corpus.rules.arabic = corpus_rules.arabic()
    value.corpus.rules.arabic.language.threshold = 0.0
    value.corpus.features = ("url", "date", "domain", "tags")
    value.corpus.parts = 4
    value.corpus.dedup.update(url=True, text=True, minhash=True, shingle=5, **dedup)
    return value


def plan_of(value, *, workdir):
    """The plan of a config."""
    return make_corpus_plan(read(CorpusSettings, value.corpus, where="corpus"), workdir=workdir)


def run(value, workdir, **executor):
    """Runs the pipeline (without the report); returns its plan and tallies."""
    workdir.mkdir(parents=True, exist_ok=True)
    value.corpus.executor.update(executor)
    plan = plan_of(value, workdir=workdir)
    return plan, pipeline.run(plan, workdir=workdir)


def files_of(directory):
    """Name -> bytes of a dataset."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
