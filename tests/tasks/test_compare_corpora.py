"""Task `compare_corpora`: changes, grades and moderation as counted by hand, perplexities as numpy computes them."""

import json
import re
import subprocess
import sys

import numpy as np
import numpy_llama
import pytest
from processes import ROOT
from scripted_server import JsonServer, completion
from small_server import CONTEXT, make_params, make_tokenizer, save_model

from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset
from allam_jax.errors import UserError
from allam_jax.rewriting.corpus_changes import changes
from allam_jax.rewriting.rubric import grades, read_rubric
from allam_jax.tasks import runner
from configs import base

pytestmark = pytest.mark.usefixtures("one_device")
RUBRIC = "configs/instructions/rubric.toml"
CRITERIA = ("format", "accuracy", "moderation", "advertisements", "detail")
BEFORE = {
    "same": "Nothing changes here.",
    "gone": "This one is left out.",
    "lossy": "On 3/4/2024 he paid 7 and 9, as Keller of https://a.example/x wrote, and then he left the town for good.",
    "arabic": "ذهب كمال إلى السوق مع أخيه.",
    "other": "ذهب إلى السوق مع أخيه ذهب إلى السوق مع أخيه.",
}
AFTER = {
    "same": "Nothing changes here.",
    "lossy": "Keller paid 7, and then he left the town for good.",
    "arabic": "ذهب إلى السوق مع أخيه.",
    "other": "ذهب إلى السوق مع أخيه.",
}


def written(directory, texts):
    documents = [
        Document(text=text, id=name, source="web", language="ar" if name in ("arabic", "other") else "en")
        for name, text in texts.items()
    ]
    write_dataset(documents, directory=directory, name="web", validation_share=0)
    return str(directory)


@pytest.fixture
def config(tmp_path):
    """Compares AFTER with BEFORE."""
    config = base.get_config("compare_corpora")
    config.compare.before = written(tmp_path / "before", BEFORE)
    config.compare.corpora.aligned = written(tmp_path / "after", AFTER)
    return config


def test_what_has_changed_is_counted(config, tmp_path):
    (tmp_path / "blocked.txt").write_text("town\n")
    config.compare.block_lists.en = str(tmp_path / "blocked.txt")
    found = runner.run(config, workdir=tmp_path / "run")
    assert found["documents"] == 5
    assert found.keys() == {"documents", "changed", "toxicity", "diversity"}
    changed = found["changed"]["aligned"]
    means = {name: (of["mean"], of["documents"]) for name, of in changed.items()}
    lossy, arabic, other = ("lossy", "arabic", "other")
    lengths = [sum(map(str.isalnum, AFTER[n])) / sum(map(str.isalnum, BEFORE[n])) for n in (lossy, arabic, other)]
    assert means == {
        "unchanged": (0.2, 5),
        "gone": (0.2, 5),
        "numbers lost": (0.5, 1),  # 9 of 7 and 9
        "dates lost": (1.0, 1),
        "links lost": (1.0, 1),
        "names lost": (0.5, 2),  # Keller is there at a beginning; كمال, which no other document has, is gone
        # Of the 5-grams now: "and then he left the" to "left the town for good" are 4 of 7; then 0 and 1 of 1.
        "words copied": (pytest.approx((4 / 7 + 0 + 1) / 3), 3),
        "length, as a ratio": (pytest.approx(np.mean(lengths)), 3),
    }
    toxicity = found["toxicity"]["en"]
    assert (toxicity["before"]["documents with any"], toxicity["aligned"]["documents with any"]) == (0.2, 0.25)
    page = (tmp_path / "run" / "report.md").read_text()
    assert page.count("> ") == 2 * 3
    config.compare.documents = 2
    assert runner.run(config, workdir=tmp_path / "two")["documents"] == 2


def test_what_advertising_says_is_not_lost():
    said, sold = "He paid 7 in May.", "Call 0100 555 2233 now for the best offer and free shipping!"

    def lost(text):
        return changes({"a": f"{said} {sold}"}, {"a": text}, languages={"a": "en"}, common=frozenset())["numbers lost"]

    assert (lost(said), lost(sold), lost(f"{said} Call.")) == ([0.0], [1.0], [0.0])


def truth(text, *, tokenizer, params, config):
    """Perplexity and bits per byte of a text from the equations."""
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    nats = numpy_llama.nats(params, ids, config=config, window=CONTEXT)
    return np.exp(nats / (len(ids) - 1)), nats / np.log(2) / len(text.encode())


def test_perplexities_are_those_of_the_equations(config, tmp_path):
    save_model(tmp_path)
    config.init.weights = str(tmp_path / "model")
    found = runner.run(config, workdir=tmp_path / "run")["perplexities"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "perplexities.jsonl").open()]
    texts = {"before": BEFORE, "aligned": AFTER}
    assert {(row["corpus"], row["id"]) for row in rows} == {(c, n) for c, some in texts.items() for n in some}
    tokenizer = make_tokenizer()
    params, small = make_params(tokenizer)
    model = {"tokenizer": tokenizer, "params": params, "config": small}
    expected = {(row["corpus"], row["id"]): truth(texts[row["corpus"]][row["id"]], **model) for row in rows}
    for row in rows:
        perplexity, bits = expected[row["corpus"], row["id"]]
        assert row["perplexity"] == pytest.approx(perplexity, rel=1e-4)
        assert row["bits_per_byte"] == pytest.approx(bits, rel=1e-4)
    for place, measure in enumerate(("perplexity", "bits_per_byte")):
        values = {corpus: [v[place] for (c, _), v in expected.items() if c == corpus] for corpus in texts}
        assert found[measure]["aligned"]["median"] == pytest.approx(np.median(values["aligned"]), rel=1e-4)
        assert found[measure]["before"]["most"] == pytest.approx(max(values["before"]), rel=1e-4)
        lower = [expected["aligned", n][place] < expected["before", n][place] for n in AFTER if n != "same"]
        assert found[measure]["aligned"]["share below before"] == sum(lower) / len(AFTER)
    assert (tmp_path / "run" / "perplexities.png").stat().st_size > 1000
    assert "](perplexities.png)" in (tmp_path / "run" / "report.md").read_text()


def judged(path, body):
    """The aligned text gets 8 and the other 4; the first gets 1 more for its format. Some judgments have no grades."""
    shown = re.findall(r"(?:begins|النسخة [AB])\]\n(.*?)\n\[", body["messages"][-1]["content"], re.S)
    first, second = (8 if text in AFTER.values() else 4 for text in (shown[0], shown[-1]))
    if shown[0] == AFTER["arabic"]:
        return completion("I'm sorry, I can't judge that.")
    if shown[0] == BEFORE["other"]:
        return 400
    lines = [f"{name}: [[{first + (name == 'format')}]] [[{second}]]" for name in CRITERIA]
    return completion("\n".join(["**Thoughts** on [[format]]", f"**{lines[0]}**", *lines[1:]]))


def test_a_judge_grades_both_orders(config, tmp_path):
    with JsonServer(judged).running() as server:
        config.compare.rubric.instruction = RUBRIC
        config.compare.rubric.endpoint.update(url=server.url, model="judge", key_variable="", attempts=1)
        found = runner.run(config, workdir=tmp_path / "run")["rubric"]["aligned"]
        assert len(server.asked) == 6  # three documents have changed
        assert runner.run(config, workdir=tmp_path / "run")["rubric"]["aligned"] == found
        assert len(server.asked) == 6
        other = (ROOT / RUBRIC).read_text().replace("Grade each version", "Now grade each version")
        (tmp_path / "other.toml").write_text(other)
        config.compare.rubric.instruction = str(tmp_path / "other.toml")
        with pytest.raises(UserError, match="another prompts"):
            runner.run(config, workdir=tmp_path / "run")
    assert (found["documents"], found["graded"]) == (3, 1)
    assert found["missing"] == {"refused": 2, "no answer": 1}
    assert found["grades"]["format"]["before"] == 4.5
    assert found["grades"]["format"]["after"] == 8.5
    assert found["grades"]["detail"]["gain"] == {"mean": 4.0, "low": 4.0, "high": 4.0, "documents": 1}
    assert found["grades"]["overall"]["before"] == pytest.approx(4.1)
    assert found["first_over_second"] == pytest.approx(0.2)  # 1 of five criteria
    assert found["consistent"] == 1.0
    asked = {body["messages"][0]["content"].split("\n")[0][:20] for _, body in server.asked}
    assert len(asked) == 2  # in the language of the document
    page = (tmp_path / "run" / "report.md").read_text()
    assert "2 refused, 1 no answer" in page


@pytest.mark.parametrize(
    ("judgment", "expected"),
    [
        ("a: [[1]] [[10]]\nb: [[2.5]] [[3]]", [[1, 10], [2.5, 3]]),
        ("1. **A**: [[1]] vs. [[2]]\n| b | [[3]] | [[4]] |", [[1, 2], [3, 4]]),
        ("a: [[1]] [[1]]\nNo, better:\na: [[2]] [[3]]\nb: [[4]] [[4]]", [[2, 3], [4, 4]]),
        ("a: [[1]] [[2]]", None),
        ("a: [[1]] [[2]]\nb: [[0]] [[5]]", None),
        ("a: [[1]] [[2]]\nb: [[5]]", None),
        ("a: 1 2\nb: 3 4", None),
    ],
)
def test_grades_of_a_judgment(judgment, expected):
    found = grades(judgment, ("a", "b"))
    assert (None if found is None else found.tolist()) == expected


def test_criteria_of_several_words():
    """As TOML names them: with hyphens, spaces and digits; one can begin like another one."""
    names = ("to-the-point", "factual accuracy", "factual", "الدقة", "2nd")
    given = {name: [number, number + 1] for number, name in enumerate(names, start=1)}
    judgment = "".join(f"- **{name.title()}**: [[{one}]] [[{two}]]\n" for name, (one, two) in given.items())
    assert grades(judgment, names).tolist() == list(given.values())
    assert grades("factually: [[1]] [[2]]", ("factual",)) is None


def moderated(path, body):
    if body["input"] == AFTER["lossy"]:
        return 400
    toxic = {"same": ("hate", "hate/threatening"), "arabic": ("violence/graphic", "sexual")}
    flagged = toxic.get(next((name for name, text in AFTER.items() if text == body["input"]), ""), ())
    names = ("harassment", "hate", "hate/threatening", "sexual", "violence", "violence/graphic", "self-harm")
    categories = {name: name in flagged for name in names} | {"illicit": None}
    scores = {name: 0.75 if name in flagged else 0.25 for name in names}
    return {"results": [{"flagged": bool(flagged), "categories": categories, "category_scores": scores}]}


def test_moderation_is_counted(config, tmp_path):
    with JsonServer(moderated).running() as server:
        config.compare.moderation.endpoint.update(url=server.url, model="moderation", key_variable="", attempts=1)
        found = runner.run(config, workdir=tmp_path / "run")["moderation"]
        assert {path for path, _ in server.asked} == {"/v1/moderations"}
        assert len(server.asked) == 7  # texts of nine documents
        assert runner.run(config, workdir=tmp_path / "run")["moderation"] == found
        assert len(server.asked) == 7
        config.compare.moderation.update(documents=3, most_characters=30)
        few = runner.run(config, workdir=tmp_path / "few")["moderation"]
    before, after = found["before"], found["aligned"]
    assert (before["documents"], before["no answer"]) == (5, 0)
    assert (after["documents"], after["no answer"]) == (3, 1)
    assert [before[name] for name in ("harassment", "hate", "sexual", "violence", "any")] == [0, 1, 0, 0, 1]
    assert [after[name] for name in ("harassment", "hate", "sexual", "violence", "any")] == [0, 1, 2, 2, 3]
    assert before["hate, mean score"] == pytest.approx((0.75 + 4 * 0.25) / 5)
    assert few["before"]["documents"] < 4


def test_what_does_not_go_together_is_an_error(config, tmp_path):
    def fails(message, **given):
        changed = base.get_config("compare_corpora")
        changed.compare.corpora.aligned = config.compare.corpora.aligned
        changed.compare.before = config.compare.before
        changed.compare.update(given)
        with pytest.raises(UserError, match=message):
            runner.run(changed, workdir=tmp_path / "bad")

    fails("as before, and not both", damaged=str(tmp_path))
    fails("as before, and not both", before="")
    turned = {"before": config.compare.corpora.aligned, "corpora": {"aligned": config.compare.before}}
    fails("does not have; compare what was made of it", **turned)
    write_dataset(
        [Document(text=text, id="x", source="web", language="en") for text in ("a", "b")],
        directory=tmp_path / "twice",
        name="web",
        validation_share=0,
    )
    fails("two documents have the id 'x'", before=str(tmp_path / "twice"))
    config.compare.corpora.before = config.compare.before
    with pytest.raises(UserError, match=r"compare.corpora.before: the report has a corpus of that name"):
        runner.run(config, workdir=tmp_path / "bad")
    for old, new, message in (
        ("{second}", "", r"prompts.en: expected a text with \{first\} and \{second\} once"),
        ('detail = "detail:', 'length = "detail:', "guidelines.en: other criteria than in the other languages"),
    ):
        (tmp_path / "bad.toml").write_text((ROOT / RUBRIC).read_text().replace(old, new))
        with pytest.raises(UserError, match=message):
            read_rubric(str(tmp_path / "bad.toml"))


def test_the_task_is_there_without_jax():
    code = "import sys, allam_jax.tasks.compare_corpora; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
