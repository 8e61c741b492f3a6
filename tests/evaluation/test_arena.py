"""The arena: who sees which pair, votes that survive, the page in a real browser, and what comes out."""

import concurrent.futures
import json

import httpx
import pytest
import served_pages
from browser import browsing
from ml_collections import ConfigDict

from allam_jax.errors import UserError
from allam_jax.evaluation.arena_server import make_app
from allam_jax.evaluation.settings import ArenaSettings
from allam_jax.evaluation.votes import Assignment, Rule, Vote, VoteLog, read_pairs, winner
from allam_jax.tasks import runner
from configs import base

RULE = Rule(first=3, more=1)


def write_pairs(path, count=6):
    rows = [
        {
            "id": f"p{i}",
            "domain": ("history", "science")[i % 2],
            "question": f"ما هو السؤال {i}؟ <b>x</b>",
            "model_a": "allam",
            "answer_a": f"جواب جيد {i}",
            "model_b": "base",
            "answer_b": f"answer {i} <script>window.hacked = 1</script>",
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def arena(tmp_path):
    log = VoteLog(tmp_path / "votes.jsonl")
    yield Assignment(read_pairs(write_pairs(tmp_path / "pairs.jsonl")), log, rule=RULE, seed=1)
    log.close()


def serving(assignment):
    return served_pages.serving(make_app(assignment, ArenaSettings(title="Which?")), section="arena")


def rate(assignment, rater, choose):
    """A rater votes until nothing is left; `choose(pair)` says a, b, tie or both_bad."""
    count = 0
    while (pair := assignment.next(rater)) is not None:
        said = choose(pair)
        if said in ("a", "b"):
            said = "left" if assignment.left(rater, pair.id) == said else "right"
        assert assignment.vote(rater, pair.id, said)
        count += 1
    return count


def test_three_raters_and_a_fourth_where_they_disagree(arena):
    assert rate(arena, "one", lambda pair: "a") == 6
    assert rate(arena, "two", lambda pair: "a" if pair.id < "p3" else "b") == 6
    assert rate(arena, "three", lambda pair: "tie") == 6
    assert rate(arena, "one", lambda pair: "a") == 0
    assert rate(arena, "four", lambda pair: "b") == 3  # p3, p4, p5: a, b, tie
    assert rate(arena, "five", lambda pair: "b") == 0
    outcomes = {name: RULE.outcome(choices) for name, choices in arena.choices().items()}
    assert outcomes == dict.fromkeys(("p0", "p1", "p2"), "a") | dict.fromkeys(("p3", "p4", "p5"), "tie")
    assert winner(["b", "b", "a", "tie"]) is None
    assert RULE.outcome(["b", "b"]) is None


def test_order_and_sides_are_random_and_fixed(arena):
    assert arena.next("x").id == arena.next("x").id
    sides = [arena.left(rater, f"p{i}") for rater in ("x", "y", "z", "w") for i in range(6)]
    assert 6 <= sides.count("a") <= 18
    assert len({tuple(sides[i : i + 6]) for i in range(0, 24, 6)}) > 1


def test_raters_at_once(arena):
    """Eight raters vote at the same time, each vote sent twice: every pair gets three or four votes, none twice."""

    def work(rater):
        while (pair := arena.next(rater)) is not None:
            said = ("left", "right", "tie", "both_bad")[hash((rater, pair.id)) % 4]
            arena.vote(rater, pair.id, said)
            assert not arena.vote(rater, pair.id, said)

    raters = [f"rater {i}" for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(work, raters))
    for rater in raters:  # who has left comes back: a third vote may have asked for a fourth one since
        work(rater)
    for choices in arena.choices().values():
        assert RULE.missing(choices) == 0
        assert len(choices) <= 4


def test_the_log_survives_a_crash(tmp_path):
    path = tmp_path / "votes.jsonl"
    log = VoteLog(path)
    for rater in ("x", "y"):
        assert log.add(Vote("p1", rater, "a", "b", 1.0))
    log.close()
    whole = path.read_bytes()
    for cut in range(len(whole)):  # wherever a crash may have cut the second line
        path.write_bytes(whole[:cut])
        log = VoteLog(path)
        kept = whole[: cut + 1].count(b"\n")  # a vote that lacks its newline alone is whole
        assert [vote.rater for vote in log.votes] == ["x", "y"][:kept]
        for rater in ("x", "y"):
            assert log.add(Vote("p1", rater, "a", "b", 1.0)) == (rater not in ["x", "y"][:kept])
        log.close()
        assert path.read_bytes() == whole
    for change in ({"choice": "A"}, {"left": "A"}, {"choice": ["a"]}, {"rater": 3}, {"time": "now"}, {"more": 1}):
        path.write_bytes(whole + json.dumps(json.loads(whole.splitlines()[0]) | change).encode() + b"\n")
        with pytest.raises(UserError, match="line 3: no vote; expected pair, rater, choice"):
            VoteLog(path)


def test_the_server_is_blind_and_refuses_what_is_no_vote(arena):
    with serving(arena) as url, httpx.Client(base_url=url) as client:
        shown = client.get("/next", params={"rater": "x"}).json()["pair"]
        assert set(shown) == {"id", "question", "left", "right"}
        assert "allam" not in client.get("/next", params={"rater": "x"}).text.replace("allam_jax", "")
        vote = {"rater": "x", "pair": shown["id"], "said": "left"}
        assert client.post("/vote", json=vote).json() == {"added": True}
        assert client.post("/vote", json=vote).json() == {"added": False}
        for wrong in ({**vote, "pair": "p99"}, {**vote, "said": "up"}, {**vote, "rater": "<b>"}, {}, ["x"]):
            assert client.post("/vote", json=wrong).status_code == 400
        assert client.post("/vote", content="x" * 9000, headers={"Content-Type": "application/json"}).status_code == 400
        assert client.post("/vote", data=vote).status_code == 400
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
        assert len(arena._log.votes) == 1


def config_of(tmp_path, **given) -> ConfigDict:
    config = base.get_config("arena")
    config.arena.update(pairs=str(tmp_path / "pairs.jsonl"), serve=False, bootstrap=20, **given)
    return config


def test_results(arena, tmp_path):
    work = tmp_path / "run"
    assert runner.run(config_of(tmp_path), workdir=work)["votes"] == 0
    for rater in ("one", "two", "three"):
        rate(arena, rater, lambda pair: "a" if pair.id < "p4" else "both_bad")
    (work / "votes.jsonl").write_bytes((tmp_path / "votes.jsonl").read_bytes())
    result = runner.run(config_of(tmp_path), workdir=work)
    assert (result["decided"], result["votes"], result["fleiss_kappa"]) == (6, 18, 1.0)
    found = json.loads((work / "arena.json").read_text())
    assert found["win_rates"]["allam"]["base"] == pytest.approx((4 + 2 * 0.5) / 6)
    assert found["elo"]["allam"]["rating"] > found["elo"]["base"]["rating"]
    assert set(found["domains"]) == {"history", "science"}
    assert found["domains"]["history"]["points"] == {"allam": pytest.approx(2.5 / 3), "base": pytest.approx(0.5 / 3)}
    report = (work / "arena.md").read_text()
    assert "win_rates.png" in report
    assert (work / "ratings.png").stat().st_size > 1000
    custom = runner.run(config_of(tmp_path, both_bad="custom"), workdir=work)
    assert custom["decided"] == 6
    assert json.loads((work / "arena.json").read_text())["win_rates"]["base"]["allam"] == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "q"}', "line 2: no text in field 'model_a'"),
        ("x", "line 2: not JSON"),
        (
            '{"id": "p0", "question": "q", "model_a": "m", "answer_a": "x", "model_b": "n", "answer_b": "y"}',
            "has the id 'p0'",
        ),
        ('{"question": "q", "model_a": "m", "answer_a": "x", "model_b": "m", "answer_b": "y"}', "both answers are of"),
    ],
)
def test_files_that_hold_no_pairs(tmp_path, line, message):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, 1)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=message):
        read_pairs(str(path))


@pytest.mark.long
def test_the_page(arena):
    """Three raters in browsers: keys and buttons, a reload, a double click, a server that is away for a while."""
    with serving(arena) as url:
        for number, rater in enumerate(("one", "two", "three")):
            with browsing(phone=number == 2) as browser:
                browser.open(url)
                browser.until("document.title === 'Which?'")
                browser.js(
                    "document.getElementById('rater').value = arguments[0];"
                    "document.querySelector('#enter button').click()",
                    rater,
                )
                ready = "!document.querySelector('[data-said]').disabled && !document.getElementById('pair').hidden"
                for step in range(6):
                    browser.until(ready)
                    assert browser.js("return window.hacked") is None
                    shown = browser.js(
                        "return ['question', 'left', 'right'].map(id => document.getElementById(id).innerText)"
                    )
                    assert "<b>x</b>" in shown[0]
                    direction = "return getComputedStyle(document.getElementById('question')).direction"
                    assert browser.js(direction) == "rtl"
                    said = "left" if "جيد" in shown[1] else "right"
                    if step == 1:
                        browser.open(url)  # a reload shows the same pair
                        browser.until(ready)
                        assert shown[0] == browser.js("return document.getElementById('question').innerText")
                    if step == 2:  # a double click
                        browser.js(f"const b = document.querySelector('[data-said={said}]'); b.click(); b.click()")
                    elif step == 3:
                        key = {"left": "1", "right": "4"}[said]
                        browser.js(
                            f"document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}}))"
                        )
                    elif step == 4:  # the first attempts fail
                        browser.js(
                            "const real = fetch; let left = 2; window.fetch = (...a) => left-- > 0 ? "
                            "Promise.reject(new TypeError('away')) : real(...a);"
                            f"document.querySelector('[data-said={said}]').click()"
                        )
                    else:
                        browser.js(f"document.querySelector('[data-said={said}]').click()")
                    browser.until(f"document.getElementById('progress').textContent.startsWith('{step + 1} by you')")
                browser.until("document.getElementById('state').textContent.includes('Nothing is left')")
                width = browser.js("return [document.documentElement.scrollWidth, innerWidth]")
                assert width[0] <= width[1]
        assert [choices for choices in arena.choices().values()] == [["a", "a", "a"]] * 6
        assert len(arena._log.votes) == 18


def test_names_of_raters_may_have_vowel_marks(arena):
    with serving(arena) as url:
        assert httpx.get(f"{url}/next", params={"rater": "مقيّم 4"}).status_code == 200
        assert httpx.get(f"{url}/next", params={"rater": "a<b"}).status_code == 400
