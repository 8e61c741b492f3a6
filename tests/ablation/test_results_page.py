"""The page of results: sections in order, what the author wrote kept, figures beside it."""

import json
import re

import pytest

from allam_jax.ablation.results_page import portable, update
from allam_jax.errors import UserError

PNG = b"\x89PNG\r\n"


def collected(folder, *, title="Rates", verdict="holds", unfinished=()):
    """What `collect` leaves, as far as the page reads it."""
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "curves.png").write_bytes(PNG + title.encode())
    (folder / "table.md").write_text("| rate | bits |\n| ---: | ---: |\n| 1 | 2.500 |\n")
    summary = {
        "title": title,
        "claim": "A higher rate learns more.",
        "verdict": verdict,
        "verdicts": [{"line": f"**{verdict}**: a claim"}],
        "table": [{"rate": 1, "runs": 3}],
        "unfinished": list(unfinished),
        "seconds": 75.0,
        "figures": {"curves": "Held-out text."},
        "environment": {"Python": "3.11.1", "jax": "0.10.2", "Devices": "1 × cpu (cpu), 1 process", "Host": "Linux"},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_section_says_all_of_an_experiment(tmp_path):
    page = tmp_path / "docs" / "results.md"
    command = "python run.py --sweep=experiments/rates.py"
    update(page, name="rates", file="experiments/rates.py", collected=collected(tmp_path / "a"), command=command)
    text = page.read_text()
    assert text.startswith("# Results\n")
    for part in (
        "## Rates",
        "A higher rate learns more. The docstring of `experiments/rates.py` says how it was done.",
        "**Verdict: holds**",
        "- **holds**: a claim",
        "![Held-out text.](images/results/rates-curves.png)",
        "| 1 | 2.500 |",
        "python run.py --sweep=experiments/rates.py",
        "add up to 1 min 15 s; jobs may have run side by side. Python 3.11.1, jax 0.10.2; Linux; 1 × cpu (cpu)",
        "| [Rates](#rates) | holds | 3 |",
    ):
        assert part in text, part
    assert (page.parent / "images" / "results" / "rates-curves.png").read_bytes() == PNG + b"Rates"


def test_the_page_does_not_depend_on_the_order_of_collecting(tmp_path):
    folders = {name: collected(tmp_path / name, title=name.title()) for name in ("beta", "alpha", "gamma")}
    pages = []
    for number, order in enumerate((("beta", "alpha", "gamma"), ("gamma", "beta", "alpha"))):
        page = tmp_path / str(number) / "results.md"
        for name in order:
            update(page, name=name, file="a.py", collected=folders[name], command="python run.py")
        pages.append(page.read_text())
    assert pages[0] == pages[1]
    assert re.findall(r"^## (\w+)", pages[0], re.M) == ["Alpha", "Beta", "Gamma"]


def test_only_the_section_is_rewritten(tmp_path):
    page = tmp_path / "results.md"
    for name in ("alpha", "beta"):
        update(
            page,
            name=name,
            file="a.py",
            collected=collected(tmp_path / name, title=name.title()),
            command="python run.py",
        )
    page.write_text(page.read_text().replace("# Results\n", "# Results\n\nWhat the author says.\n", 1))
    before = page.read_text()
    update(page, name="alpha", file="a.py", collected=tmp_path / "alpha", command="python run.py")
    assert page.read_text() == before
    changed = collected(tmp_path / "again", title="Alpha", verdict="does not hold")
    update(page, name="alpha", file="a.py", collected=changed, command="python run.py")
    after = page.read_text()
    assert after == before.replace("| [Alpha](#alpha) | holds |", "| [Alpha](#alpha) | does not hold |").replace(
        before[before.index("<!-- experiment alpha") : before.index("<!-- experiment beta")],
        after[after.index("<!-- experiment alpha") : after.index("<!-- experiment beta")],
    )
    assert "**Verdict: does not hold**" in after
    assert after.count("What the author says.") == 1


def test_what_has_not_finished_is_not_on_the_page(tmp_path):
    folder = collected(tmp_path / "a", unfinished=["lr-1--seed-2"])
    with pytest.raises(UserError, match="1 runs are unfinished"):
        update(
            tmp_path / "results.md",
            name="rates",
            file="experiments/rates.py",
            collected=folder,
            command="python run.py",
        )
    assert not (tmp_path / "results.md").exists()


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        ("python run.py --sweep a.py --workdir /x --store=/y --jobs 2", "python run.py --sweep a.py --jobs 2"),
        ("python run.py --collect --sweep=a.py --results docs/results.md", "python run.py --sweep=a.py"),
        ("python run.py --sweep=a.py --set stage.a.b=2 --retries=2", "python run.py --sweep=a.py --set stage.a.b=2"),
    ],
)
def test_the_command_is_one_that_anybody_can_repeat(command, kept):
    assert portable(command) == kept
