"""Review by people: items, decisions that survive and merge, agreement, and the page in a real browser."""

import json
import random
import threading

import httpx
import pytest
import served_pages
from browser import browsing
from sklearn.metrics import cohen_kappa_score

from allam_jax.alignment.conversations import conversation_of
from allam_jax.alignment.review_decisions import Review
from allam_jax.alignment.review_items import read_items
from allam_jax.alignment.review_server import make_app
from allam_jax.alignment.settings import ReviewSettings
from allam_jax.errors import UserError
from allam_jax.evaluation.ratings import cohen_kappa
from allam_jax.rewriting.instructions import read_guidelines
from allam_jax.tasks import runner
from configs import base
from configs import review as review_config

GUIDELINES = read_guidelines("configs/instructions/rewrite.toml")
RULES = GUIDELINES.names()


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rewrites(count):
    """As task `rewrite` writes them, two pieces a document; the second of some has no rewrite."""
    for n in range(0, count, 2):
        pieces = [
            [f"النص {n} <img src=x onerror='window.hacked=1'>", f"نص أفضل {n} <script>window.hacked = 1</script>"],
            [f"Text {n}, BUY NOW", None if n % 4 else f"Text {n}."],
        ]
        yield {"id": f"d{n}", "language": "ar", "model": "abc", "pieces": pieces}


def open_review(tmp_path, items, **given):
    return Review(items, tmp_path / "decisions.jsonl", rules=RULES, guidelines="native alignment 1", **given)


def say(review, item, verdict="accept", *, by="one", texts=None, flags=(), note=""):
    given = {"item": item.id, "verdict": verdict, "texts": list(texts or item.texts), "flags": list(flags)}
    review.decide(given | {"note": note}, reviewer=by)


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def applied(tmp_path, workdir, **given):
    config = review_config.get_config()
    config.review.update(input=str(tmp_path / "rows.jsonl"), serve=False, **given)
    result = runner.run(config, workdir=workdir)
    return result, rows_of(workdir / "clean.jsonl"), rows_of(workdir / "left_out.jsonl")


def test_every_kind_of_row_becomes_an_item_and_goes_back(tmp_path):
    ask, answer = {"role": "user", "content": "ما عاصمة مصر؟"}, {"role": "assistant", "content": "القاهرة"}
    worse = answer | {"content": "روما"}
    rows = [
        {"original": "a b", "rewrite": "a", "source": "web"},
        {"prompt": ask["content"], "chosen": answer["content"], "rejected": worse["content"], "score": 3},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}], "document": "the text"},
        *rewrites(4),
        {"original": "a b", "rewrite": "a"},  # the same texts again
        {"original": "x", "rewrite": " "},
        {"messages": [answer]},
        {"original": "\ud800", "rewrite": "y"},
        {"nothing": 1},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no JSON\n")
    items = read_items(str(path))
    assert len(items) == 3 + 4
    assert [(item.labels, item.texts) for item in items[:3]] == [
        (("rewrite",), ("a",)),
        (("chosen: assistant", "rejected: assistant"), ("القاهرة", "روما")),
        (("user", "assistant"), ("q", "r")),
    ]
    assert [[passage.text for passage in item.left] for item in items[:3]] == [
        ["a b"],
        ["ما عاصمة مصر؟"],
        ["the text"],
    ]
    assert items[0].with_texts(["b"]) == {"original": "a b", "rewrite": "b", "source": "web"}
    assert items[1].with_texts(["x", "y"]) == {
        "score": 3,
        "chosen": [ask, answer | {"content": "x"}],
        "rejected": [ask, answer | {"content": "y"}],
    }
    assert items[2].with_texts(["x", "y"])["messages"][1] == {"role": "assistant", "content": "y"}
    assert items[2].texts == ("q", "r")  # untouched
    assert items[6].record["piece"] == 1
    assert items[6].texts == (items[6].left[0].text,)  # no rewrite: as it was
    path.write_text('{"nothing": 1}\n')
    with pytest.raises(UserError, match=r"has no rows that can be reviewed \(1 no conversation"):
        read_items(str(path))
    path.write_text("")  # the clean.jsonl of a review that nobody has begun
    with pytest.raises(UserError, match="nothing has been accepted or edited yet"):
        read_items(str(path))


def test_decisions_come_out_as_cleaned_rows(tmp_path):
    write_rows(tmp_path / "rows.jsonl", rewrites(6))
    items = read_items(str(tmp_path / "rows.jsonl"))
    work = tmp_path / "run"
    assert applied(tmp_path, work)[0]["undecided"] == 6
    review = open_review(work, items)
    say(review, items[0], flags=["values", "format"], note=" why ")
    say(review, items[1], texts=["first"])
    say(review, items[1], texts=["second"])  # it takes the place of the first
    say(review, items[2], "reject")
    say(review, items[3])
    say(review, items[3], "reject", by="two")
    review.close()
    result, clean, left_out = applied(tmp_path, work)
    counts = {"accepted": 1, "edited": 1, "rejected": 1, "conflict": 1, "undecided": 2}
    assert result == {"items": 6, **counts, "decisions": 5}
    assert [row["rewrite"] for row in clean] == [items[0].texts[0], "second"]
    assert {key: clean[0][key] for key in ("id", "language", "model", "piece")} == {
        **{"id": "d0", "language": "ar", "model": "abc", "piece": 0}
    }
    (said,) = clean[0]["review"]["decisions"]
    assert (said["flags"], said["note"]) == (["format", "values"], "why")
    assert said["guidelines"] == "native alignment 1"
    assert [row["review"]["outcome"] for row in left_out] == ["rejected", "conflict", "undecided", "undecided"]
    assert "one: accept, two: reject" in (work / "review.md").read_text()
    assert applied(tmp_path, work, arbiter="one")[0]["accepted"] == 2


def test_files_of_two_machines_merge_and_their_agreement_is_that_of_sklearn(tmp_path):
    write_rows(tmp_path / "rows.jsonl", rewrites(200))
    items, rng = read_items(str(tmp_path / "rows.jsonl")), random.Random(0)
    said = {"one": [], "two": []}
    for name in said:
        applied(tmp_path, tmp_path / name)
        review = open_review(tmp_path / name, items, reviewers=2)
        for item in items if name == "one" else items[::-1][:150]:
            verdict, flags = rng.choice(("accept", "accept", "edit", "reject")), rng.sample(RULES, rng.randrange(3))
            texts = ["better"] if verdict == "edit" else None
            say(review, item, verdict if verdict == "reject" else "accept", by=name, texts=texts, flags=flags)
            said[name].append((item.id, verdict, flags))
        review.close()
    result, _, _ = applied(tmp_path, tmp_path / "one", decisions={"two": str(tmp_path / "two" / "decisions.jsonl")})
    assert result["decisions"] == 350
    other = {item: (verdict, flags) for item, verdict, flags in said["two"]}
    pairs = [((verdict, flags), other[item]) for item, verdict, flags in said["one"] if item in other]
    found = {row["of"]: row for row in json.loads((tmp_path / "one" / "review.json").read_text())["agreement"]}
    assert found["verdict"]["items"] == len(pairs) == 150
    kappa = cohen_kappa_score([a for (a, _), _ in pairs], [b for _, (b, _) in pairs])
    assert found["verdict"]["kappa"] == pytest.approx(kappa)
    for rule in RULES:
        kappa = cohen_kappa_score([rule in a for (_, a), _ in pairs], [rule in b for _, (_, b) in pairs])
        assert found[f"flag: {rule}"]["kappa"] == pytest.approx(kappa)
    conflicts = sum((a == "reject") != (b == "reject") for (a, _), (b, _) in pairs)
    assert result["conflict"] == conflicts > 0
    # The files one after the other are a merge too.
    whole = (tmp_path / "one" / "decisions.jsonl").read_bytes() + (tmp_path / "two" / "decisions.jsonl").read_bytes()
    applied(tmp_path, tmp_path / "both")
    (tmp_path / "both" / "decisions.jsonl").write_bytes(whole)
    assert applied(tmp_path, tmp_path / "both")[0] == result
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None


def test_people_at_once_and_a_crash(tmp_path):
    items = read_items(write_rows(tmp_path / "rows.jsonl", rewrites(20)))
    review = open_review(tmp_path, items, reviewers=2, arbiter="judge")

    def work(name):
        while (shown := review.view(name, None)["item"]) is not None:
            item = review.items[shown["id"]]
            say(review, item, "reject" if (name, item.id) == ("two", items[3].id) else "accept", by=name)

    threads = [threading.Thread(target=work, args=[name]) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {len(of_item) for of_item in review.decisions().values()} == {2}
    assert review.view("three", None)["item"] is None
    assert review.view("judge", None)["item"]["id"] == items[3].id  # the conflict
    assert review.view("one", 7)["item"] == review.view("one", 27)["item"]  # places go round
    review.close()
    path = tmp_path / "decisions.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    first = len(lines[0])
    for cut in (0, 1, first // 2, *range(first - 2, first + 2), first + 99, first + len(lines[1]) - 1):
        path.write_bytes(whole[:cut])
        again = open_review(tmp_path, items)
        kept = whole[: cut + 1].count(b"\n")  # a decision that lacks its newline alone is whole
        assert sum(map(len, again.decisions().values())) == kept
        say(again, items[0], by="three")
        again.close()
        assert path.read_bytes().startswith(b"".join(lines[:kept]))
        assert len(rows_of(path)) == kept + 1
    path.write_text('{"item": "x", "verdict": "accept"}\n')
    with pytest.raises(UserError, match=r"decisions.jsonl, line 1: no decision; expected item, reviewer"):
        open_review(tmp_path, items)


def serving(review):
    return served_pages.serving(make_app(review, GUIDELINES, ReviewSettings(title="Which?")), section="review")


def test_the_server_refuses_what_is_no_decision(tmp_path):
    items = read_items(write_rows(tmp_path / "rows.jsonl", rewrites(4)))
    review = open_review(tmp_path, items)
    with serving(review) as url, httpx.Client(base_url=url) as client:
        shown = client.get("/item", params={"reviewer": "مقيّم 4"}).json()
        good = {"reviewer": "مقيّم 4", "item": shown["item"]["id"], "verdict": "accept", "flags": [], "note": ""}
        good["texts"] = [passage["text"] for passage in shown["item"]["right"]]
        for wrong in (
            {"item": "x"},
            {"verdict": "edit"},
            {"texts": []},
            {"texts": [" "]},
            {"texts": [3]},
            {"texts": None},
            {"flags": ["x"]},
            {"flags": None},
            {"note": 3},
            {"note": "x" * 3000},
            {"reviewer": "<b>"},
            {"reviewer": None},
        ):
            assert client.post("/decision", json=good | wrong).status_code == 400
        surrogate = json.dumps(good | {"texts": ["\ud800"]})
        head = {"Content-Type": "application/json"}
        for body in (surrogate, "[1]", "no JSON"):
            assert client.post("/decision", content=body, headers=head).status_code == 400
        assert client.post("/decision", data=good).status_code == 400
        assert client.get("/item", params={"reviewer": "x", "at": "-1"}).status_code == 400
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
        assert review.view("x", None)["mine"] == 0
        assert client.post("/decision", json=good).json() == {"written": True}
        again = client.get("/item", params={"reviewer": "مقيّم 4", "at": shown["place"]}).json()
        assert again["item"]["decision"]["verdict"] == "accept"
        assert again["mine"] == 1
        policy = client.get("/").headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
    review.close()


def press(browser, code, **more):
    options = json.dumps({"code": code, "bubbles": True, "cancelable": True} | more)
    browser.js(f"document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {options}))")


def type_over(browser, text):
    browser.js(
        "const area = document.activeElement; area.value = arguments[0];"
        "area.dispatchEvent(new InputEvent('input', {bubbles: true}))",
        text,
    )


@pytest.mark.long
def test_fifty_pairs_by_two_people_in_a_browser(tmp_path):
    """Keys, edits, flags, notes, a reload, a way back, a server that is away; then agreement and training pairs."""
    items = read_items(write_rows(tmp_path / "rows.jsonl", rewrites(50)))
    place = {item.id: number for number, item in enumerate(items)}
    applied(tmp_path, tmp_path / "run")
    review = open_review(tmp_path / "run", items, reviewers=2)
    said = {"one": {}, "two": {}}
    with serving(review) as url:
        for name, known in said.items():
            with browsing(phone=name == "two") as browser:
                browser.open(url)
                browser.until("document.title === 'Which?'")
                browser.js(
                    "$('reviewer').value = arguments[0];document.querySelector('#enter button').click()",
                    name,
                )
                for step in range(50):
                    browser.until(f"!busy && item && $('progress').textContent === '{step} of 50 by you'")
                    number = place[browser.js("return item.id")]
                    assert browser.js("return window.hacked") is None
                    assert browser.js("return document.querySelectorAll('#item script, #item img').length") == 0
                    original = browser.js("return document.querySelector('#left .text').innerText")
                    text = browser.js("return document.querySelector('#right textarea').value")
                    assert (original, text) == (items[number].left[0].text, items[number].texts[0])
                    arabic = (
                        browser.js("return getComputedStyle(document.querySelector('#left .text')).direction") == "rtl"
                    )
                    assert arabic == ("النص" in original)
                    if step == 1:  # a reload shows the same item
                        browser.open(url)
                        browser.until("!busy && item")
                        assert place[browser.js("return item.id")] == number
                    flags, verdict = (
                        [],
                        ("accept", "edit", "reject")[(number + (name == "two" and number % 5 == 0)) % 3],
                    )
                    if number % 4 == 0:
                        press(browser, "Digit2")
                        flags = ["values"]
                    if step == 3:  # the first attempts fail
                        browser.js(
                            "const real = fetch; let left = 2; window.fetch = (...a) => left-- > 0 ? "
                            "Promise.reject(new TypeError('away')) : real(...a);"
                        )
                    if verdict == "edit":
                        press(browser, "KeyE")
                        type_over(browser, f"نص جديد {number}")
                        press(browser, "KeyR")  # typed into the text
                        assert browser.js("return $('accept').textContent") == "Accept as edited"
                        press(browser, "Enter", ctrlKey=True)
                    else:
                        press(browser, {"accept": "KeyA", "reject": "KeyR"}[verdict])
                    known[number] = (verdict, flags)
                browser.until("$('state').textContent.includes('Nothing is left')")
                width = browser.js("return [document.documentElement.scrollWidth, innerWidth]")
                assert width[0] <= width[1]
                browser.js("load(3)")  # a way back: what was said is shown, and can be changed
                browser.until("!busy && item")
                number = place[browser.js("return item.id")]
                assert known[number][0] in browser.js("return $('state').textContent")
                press(browser, "KeyZ")
                press(browser, "KeyA")
                browser.until("$('state').textContent.includes('Nothing is left')")
                known[number] = ("accept", known[number][1])
                assert [line for line in browser.log() if "Failed to load" not in line] == []
    review.close()
    decisions = review.decisions()
    for name, known in said.items():
        of = {place[item]: by[name] for item, by in decisions.items()}
        assert {number: (decision.verdict, list(decision.flags)) for number, decision in of.items()} == known
    result, clean, _ = applied(tmp_path, tmp_path / "run", reviewers=2)
    found = {row["of"]: row for row in json.loads((tmp_path / "run" / "review.json").read_text())["agreement"]}
    kappa = cohen_kappa_score(*[[known[number][0] for number in range(50)] for known in said.values()])
    assert found["verdict"]["kappa"] == pytest.approx(kappa)
    assert result["undecided"] == 0
    config = base.get_config("seed_pairs")
    config.seed_pairs.update(input=str(tmp_path / "run" / "clean.jsonl"), instruction="configs/instructions/short.toml")
    assert runner.run(config, workdir=tmp_path / "pairs")["chosen"] == len(clean)
    trained_on = [conversation_of(row) for row in rows_of(tmp_path / "pairs" / "training.jsonl")]
    assert [messages[-1]["content"] for messages in trained_on] == [row["rewrite"] for row in clean]
