"""The chat page in a real browser: what it shows, what it never runs, on a desk and on a phone."""

import pytest
from browser import browsing
from small_server import ScriptedEngine, make_tokenizer, serving

pytestmark = pytest.mark.long

ATTACKS = """\
<script>window.hacked = 1</script> <img src=x onerror="window.hacked = 1"> <svg onload=window.hacked=1>
[x](javascript:window.hacked=1) [y](JaVaScRiPt:alert(1)) [z](data:text/html,<script>1</script>)
`<b>bold</b>` **<i>x</i>** # <iframe src="https://example.org"></iframe>

```html
</code></pre><script>window.hacked = 1</script>
```
"""
ARABIC = """\
# عنوان

مرحبا بك في **جاكس** JAX.

1. أولا
2. ثانيا [رابط](https://example.org/a)

```python
print("x")
```

An English paragraph."""


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def send(browser, text):
    browser.js("document.getElementById('text').value = arguments[0]; document.getElementById('send').click()", text)


def ended(browser):
    browser.until("document.getElementById('send').textContent === 'Send'")


@pytest.mark.parametrize("phone", [False, True])
def test_a_chat(tokenizer, phone):
    engine = ScriptedEngine(ARABIC)
    with serving(engine, tokenizer) as served, browsing(phone=phone) as browser:
        browser.open(served.url)
        assert browser.until("document.title !== 'Chat' && document.title") == "small/model"
        send(browser, "مرحبا <b>")
        ended(browser)
        turns = "document.querySelectorAll('.turn')"
        assert browser.js(f"return {turns}[0].innerText") == "مرحبا <b>"
        shown = browser.js(f"return [...{turns}[1].querySelectorAll('h3,p,li,strong,code,a')].map(e => e.tagName)")
        assert shown == ["H3", "P", "STRONG", "LI", "LI", "A", "CODE", "P"]
        directions = "return [...document.querySelectorAll('.assistant p, .assistant h3, .assistant pre, .user > div')]"
        found = browser.js(f"{directions}.map(e => getComputedStyle(e).direction)")
        assert found == ["rtl", "rtl", "rtl", "ltr", "ltr"]
        assert browser.js("return getComputedStyle(document.querySelector('.assistant ol')).direction") == "rtl"
        assert browser.js("return document.querySelector('.assistant a').getAttribute('rel')").startswith("noopener")
        width = browser.js("return [document.documentElement.scrollWidth, innerWidth, innerHeight]")
        assert width[0] <= width[1]
        button = browser.js(
            "const b = document.getElementById('send').getBoundingClientRect(); return [b.right, b.bottom]"
        )
        assert button[0] <= width[1]
        assert button[1] <= width[2]
        send(browser, "second")
        ended(browser)
        history = tokenizer.decode(engine.requests[-1].prompt_ids)
        assert "print" in history  # the answer is part of the next question
        assert "second" in history
        hosts = "performance.getEntriesByType('resource').map(entry => new URL(entry.name).host)"
        assert set(browser.js(f"return {hosts}")) == {served.url.removeprefix("http://")}
        assert browser.log() == []


def test_nothing_that_a_model_writes_is_run(tokenizer):
    with serving(ScriptedEngine(ATTACKS), tokenizer) as served, browsing() as browser:
        browser.open(served.url)
        send(browser, ATTACKS)
        ended(browser)
        assert browser.js("return window.hacked") is None
        answer = "document.querySelector('.assistant')"
        foreign = f"return {answer}.querySelectorAll('script,img,svg,iframe,a,b,i').length"
        assert browser.js(foreign) == 0
        text = browser.js(f"return {answer}.textContent")
        for piece in ("<script>window.hacked = 1</script>", "onerror", "javascript:window.hacked=1", "<iframe"):
            assert piece in text
        # Even markup that got into the page would not run.
        browser.js(
            "const s = document.createElement('script'); s.textContent = 'window.hacked = 2'; document.body.append(s)"
        )
        assert browser.js("return window.hacked") is None
        assert any("Content Security Policy" in line for line in browser.log())


def test_stop_errors_and_a_new_chat(tokenizer):
    with serving(ScriptedEngine("word " * 200, seconds=0.05), tokenizer, key="sesam") as served, browsing() as browser:
        browser.open(served.url)
        send(browser, "hello")
        ended(browser)
        assert "missing or wrong" in browser.js("return document.querySelector('.error').textContent")
        assert browser.js("return document.getElementById('text').value") == "hello"  # to be sent again
        browser.js("document.getElementById('key').value = 'sesam'")
        send(browser, "hello")
        browser.until("document.querySelector('.assistant')?.textContent.includes('word word')")
        browser.js("document.getElementById('send').click()")
        ended(browser)
        served.settle()
        assert served.engine.tokens < 200
        assert "word" in browser.js("return document.querySelector('.assistant').textContent")
        browser.js("document.getElementById('new').click()")
        assert browser.js("return document.querySelectorAll('.turn').length") == 0


def test_an_answer_that_is_cut_off_says_so(tokenizer):
    with serving(ScriptedEngine("word", reason="length"), tokenizer) as served, browsing() as browser:
        browser.open(served.url)
        send(browser, "hello")
        ended(browser)
        assert browser.js("return document.querySelector('.note').textContent").startswith("Cut off")
        send(browser, "again")
        ended(browser)
        assert browser.js("return document.querySelectorAll('.note').length") == 2


@pytest.mark.parametrize("mark", ["[", "[a](", "`", "**a ", "*a ", "*", "**a *b ", "> ", "- ", "#"])
def test_markdown_takes_linear_time(tokenizer, mark):
    with serving(ScriptedEngine("x"), tokenizer) as served, browsing() as browser:
        browser.open(served.url)
        script = "const begun = performance.now(); markdown(arguments[0]); return performance.now() - begun"
        assert browser.js(script, mark * 50_000) < 3000  # milliseconds
