"""Task `judge` against a scripted endpoint over real HTTP: numbers as counted by hand; nothing dropped or twice."""

import collections
import contextlib
import http.server
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from allam_jax.errors import UserError
from allam_jax.evaluation.judgments import Judgment, agreement, pairwise_scores, single_scores
from allam_jax.evaluation.mt_bench import rating, read_questions, verdict
from allam_jax.tasks import runner
from configs import base

CATEGORIES = ("writing", "math", "history")
NAMES = ("single-v1", "single-math-v1", "pair-v2", "pair-math-v1")


class Judge(http.server.ThreadingHTTPServer):
    """Answers by what the prompt holds; `say(user_message)` gives text, or a status with which it refuses once."""

    request_queue_size = 128  # the default of 5 loses connections under load, and with them attempts

    def __init__(self, say, *, seconds=0.0, messages=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.messages = {} if messages is None else messages  # the last message -> all of them
        self.say, self.seconds, self.asked, self.lock = say, seconds, collections.Counter(), threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["messages"][-1]["content"]
        time.sleep(self.server.seconds)
        with self.server.lock:
            self.server.asked[asked] += 1
            self.server.messages[asked] = body["messages"]
            times = self.server.asked[asked]
        said = self.server.say(asked, times)
        status, content = (said, {}) if isinstance(said, int) else (200, self._completion(said))
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)

    def _completion(self, text):
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 3}}


@contextlib.contextmanager
def judging(say, **given):
    server = Judge(say, **given)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def files(tmp_path):
    """Nine questions of two turns, answers of two models, references for mathematics."""

    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return str(path)

    numbers = range(81, 90)
    questions = [
        {"question_id": i, "category": CATEGORIES[i % 3], "turns": [f"سؤال {i}.1 {{x}}", f"q{i}.2"]} for i in numbers
    ]
    shapes = {
        "single": ("Q {question} A {answer}", "Q {question_1} / {question_2} A {answer_1} / {answer_2}"),
        "pair": (
            "Q {question} A {answer_a} B {answer_b}",
            "Q {question_1} / {question_2} A {answer_a_1} / {answer_a_2} B {answer_b_1} / {answer_b_2}",
        ),
    }
    prompts = []
    for name in NAMES:
        for suffix, shape in zip(("", "-multi-turn"), shapes[name.split("-")[0]], strict=True):
            references = " R {ref_answer_1}" + (" / {ref_answer_2}" if suffix else "") if "math" in name else ""
            prompts.append(
                {"name": name + suffix, "system_prompt": "Be fair.", "prompt_template": f"{name}: {shape}{references}"}
            )

    def answers(model, ids=numbers):
        return [{"question_id": i, "choices": [{"turns": [f"{model}-{i}.1", f"{model}-{i}.2"]}]} for i in ids]

    return {
        "questions": write("questions.jsonl", questions),
        "prompts": write("prompts.jsonl", prompts),
        "references": write("references.jsonl", answers("reference", [i for i in numbers if i % 3 == 1 and i < 87])),
        "good": write("good.jsonl", answers("good")),
        "poor": write("poor.jsonl", answers("poor", list(numbers)[:-1])),  # one question without an answer
    }


def config_of(files, judge, **given):
    config = base.get_config("judge")
    config.judge.update({name: files[name] for name in ("questions", "prompts", "references")})
    for model in ("good", "poor"):
        config.judge.answers[model] = files[model]
    config.judge.endpoint.update(url=judge.url, model="judge", key_variable="", concurrency=4, timeout=5.0, attempts=4)
    config.judge.update(given)
    return config


def number_of(text):
    return int(re.search(r"-(\d\d)\.", text)[1])


def grade(asked, times):
    """Good answers get 9, poor ones 4; some judgments have no rating, or refuse, or come after errors."""
    number = number_of(asked)
    if number == 81 and times == 1:
        return 429
    if number == 82 and times == 1:
        return 500
    if number == 83:
        return "I think it is quite good."
    if number == 84:
        return "I’m sorry, I can’t judge this." if "good-" in asked else "عُذْرًا، لا أستطيع"
    if number == 85:
        return 400
    return "Fine. [[9]]" if "good-" in asked else "Rating: [4.5]"


def test_single_ratings(files, tmp_path):
    with judging(grade) as judge:
        result = runner.run(config_of(files, judge), workdir=tmp_path / "run")
        again = runner.run(config_of(files, judge), workdir=tmp_path / "run")
        assert sum(judge.asked.values()) == 2 * 18 - 2 + 2 * 4  # each once; 81 and 82 twice for both turns and models
    assert again == result
    found = json.loads((tmp_path / "run" / "judge.json").read_text())
    good, poor = found["scores"]["good"], found["scores"]["poor"]
    assert (good["rating"], poor["rating"]) == (9, 4.5)
    assert good["missing"] == {"unparsed": 2, "refused": 2, "no answer": 2}
    assert poor["missing"] == {"unparsed": 2, "refused": 2, "no answer": 4}
    assert (good["judgments"], poor["judgments"]) == (18, 18)
    assert good["turns"] == {"turn 1": 9, "turn 2": 9}
    assert good["low"] == good["high"] == 9
    assert set(good["categories"]) == set(CATEGORIES)
    assert result == {"good": 9, "poor": 4.5, "judgments": 36, "missing": 14}
    assert found["lack_reference"] == 4  # 88 of mathematics has none: two turns of two models
    assert found["cost"]["prompt_tokens"] == 10 * found["cost"]["requests"]
    report = (tmp_path / "run" / "judge.md").read_text()
    assert "2 unparsed, 2 refused, 2 no answer" in report
    assert (tmp_path / "run" / "categories.png").stat().st_size > 1000


def test_prompts_are_those_of_fastchat(files, tmp_path):
    with judging(lambda asked, times: "[[5]]") as judge:
        runner.run(config_of(files, judge), workdir=tmp_path / "run")
    asked = set(judge.asked)
    assert "single-v1: Q سؤال 81.1 {x} A good-81.1" in asked
    assert "single-v1: Q سؤال 81.1 {x} / q81.2 A good-81.1 / good-81.2" in asked
    assert "single-math-v1: Q سؤال 82.1 {x} A good-82.1 R reference-82.1" in asked
    expected = "single-math-v1: Q سؤال 82.1 {x} / q82.2 A poor-82.1 / poor-82.2 R reference-82.1 / reference-82.2"
    assert expected in asked
    assert "single-v1: Q سؤال 88.1 {x} A good-88.1" in asked  # no reference is there


def compare(asked, times):
    """The good model wins up to question 85, whoever stands first; later, the first; 89 (missing) is never asked."""
    if number_of(asked) == 81:
        return "No verdict."
    good_first = asked.index("good-") < asked.index("poor-")
    if number_of(asked) < 86:
        return "[[A]]" if good_first else "[[B]]"
    return "[[C]]" if number_of(asked) == 86 else "[[A]]"


def test_pairs_in_both_orders(files, tmp_path):
    with judging(compare) as judge:
        runner.run(config_of(files, judge, mode="pairwise"), workdir=tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "judge.json").read_text())["scores"]
    (pair,) = scores["pairs"].values()
    # Games: 2 turns of 82 to 85 are won, of 86 tied, of 87 and 88 undecided between the orders; 81, 89 have no verdict.
    assert (pair["wins"], pair["ties"], pair["losses"]) == (8, 6, 0)
    assert pair["points"] == pytest.approx((8 + 3) / 14)
    assert (scores["games"], scores["judged"]) == (18, 14)
    assert scores["consistent"] == pytest.approx(10 / 14)
    assert scores["first_share"] == pytest.approx((8 + 8) / (16 + 8))  # half of 16, and all of 8
    assert scores["missing"] == {"unparsed": 4, "no answer": 4}


def test_a_killed_run_asks_nothing_twice_that_it_has_written(files, tmp_path):
    with judging(lambda asked, times: "[[5]]", seconds=0.02) as judge:
        config = config_of(files, judge)
        config.judge.endpoint.concurrency = 1
        if (pid := os.fork()) == 0:
            runner.run(config, workdir=tmp_path / "run")
            os._exit(0)
        while len(list(tmp_path.glob("run/answers/?????.jsonl"))) < 5:
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        time.sleep(0.2)  # what was under way has been counted
        written = len(list(tmp_path.glob("run/answers/?????.jsonl")))
        judge.asked.clear()
        runner.run(config, workdir=tmp_path / "run")
        assert sum(judge.asked.values()) == 34 - written
        assert set(judge.asked.values()) == {1}


def test_a_dry_run_and_bad_files(files, tmp_path):
    with judging(grade) as judge:
        config = config_of(files, judge, dry_run=True, price=1e6)
        result = runner.run(config, workdir=tmp_path / "run")
        assert not judge.asked
        assert result["requests"] == 34
        assert result["cost"] == result["prompt_tokens"] > 300
        for name, line, message in (
            ("questions", '{"question_id": 81, "turns": ["x"]}', "line 10: an earlier line has the question_id 81"),
            ("questions", '{"question_id": 7, "turns": []}', "line 10: `turns` is no list"),
            ("questions", "x", "line 10: not JSON"),
            ("questions", '{"question_id": 7, "turns": "ab"}', "line 10: `turns` is no list"),
            ("good", '{"question_id": 7}', r"`choices\[0\].turns` is no list"),
            ("good", '{"question_id": 81, "choices": [{"turns": ["x"]}]}', "an earlier line has the question_id 81"),
        ):
            path = Path(files[name])
            text = path.read_text()
            path.write_text(text + line + "\n")
            with pytest.raises(UserError, match=message):
                runner.run(config, workdir=tmp_path / "run")
            path.write_text(text)
        Path(files["prompts"]).write_text('{"name": "single-v1", "prompt_template": "x"}\n')
        with pytest.raises(UserError, match="no prompt called single-math-v1"):
            runner.run(config, workdir=tmp_path / "run")


@pytest.mark.parametrize(
    ("judgment", "expected"),
    [
        ("Rating: [[7]]", 7),
        ("[[7.5]] or [[3]]", 7.5),
        ("[6]", 6),
        ("[1] see [[8]]", 8),
        ("[[0]]", None),
        ("[[11]]", None),
        ("7", None),
        ("", None),
    ],
)
def test_ratings_are_read_as_fastchat_reads_them(judgment, expected):
    assert rating(judgment) == expected


def test_verdicts():
    found = [verdict(text) for text in ("so [[A]]", "[[B]]", "[[C]]", "[[D]] A", "[[B]] not [[A]]")]
    assert found == ["first", "second", "tie", None, "first"]


def test_intervals_draw_whole_questions_and_judges_are_compared():
    judgments = [Judgment(f"q{i}", "c", turn, ("m",), float(i)) for i in range(1, 11) for turn in (1, 2)]
    found = single_scores(judgments, seed=0)["m"]
    assert found["rating"] == 5.5
    # Of ten questions with standard deviation 2.87: 5.5 +- 1.96 * 2.87 / sqrt(10).
    assert (found["low"], found["high"]) == pytest.approx((5.5 - 1.78, 5.5 + 1.78), abs=0.25)
    other = [Judgment(j.question, j.category, j.turn, j.models, 11 - j.found) for j in judgments]
    assert agreement(judgments, other) == {"judgments": 20, "equal": 0, "correlation": pytest.approx(-1)}
    assert pairwise_scores([], seed=0)["consistent"] is None


def test_answers_of_two_turns_are_what_the_judge_reads(files, tmp_path):
    """The second turn is asked with the first answer before it; a model behind an endpoint answers here."""
    seen = {}

    def say(asked, times):
        return f"answer to {asked}"

    with judging(say, messages=seen) as model:
        config = base.get_config("mt_bench_answers")
        config.generate.update(input=files["questions"], shard_rows=1)
        config.generate.endpoint.update(url=model.url, model="m", key_variable="", concurrency=2)
        result = runner.run(config, workdir=tmp_path / "run")
        assert runner.run(config, workdir=tmp_path / "run") == result == {"questions": 9, "answered": 9, "errors": 0}
        assert sum(model.asked.values()) == 18
    second = [{"role": "user", "content": "سؤال 81.1 {x}"}]
    second += [{"role": "assistant", "content": "answer to سؤال 81.1 {x}"}, {"role": "user", "content": "q81.2"}]
    assert seen["q81.2"] == second
    with judging(lambda asked, times: "[[8]]") as judge:
        config = config_of(files | {"good": str(tmp_path / "run" / "answers.jsonl")}, judge)
        assert runner.run(config, workdir=tmp_path / "judged")["good"] == 8
    assert any("A answer to سؤال 81.1 {x} / answer to q81.2" in asked for asked in judge.asked)


def test_half_a_character_is_named(tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 1, "turns": ["\ud83d"]}) + "\n")
    with pytest.raises(UserError, match="line 1: has half a character"):
        read_questions(str(tmp_path / "q.jsonl"), key="judge.questions")
