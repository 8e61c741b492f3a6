"""What the pages name exists: files, links, keys of configs, flags, modules of commands, types and rooms."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from allam_jax.settings import fields_of
from configs import (
    adapt,
    compare_corpora,
    corpus,
    damage,
    evaluate,
    judge,
    native_alignment,
    review,
    seed,
    tokenizer,
)
from configs.suites import arabic, compare, english, over_training

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [
    path.relative_to(ROOT)
    for folder in ("allam_jax", "benchmarks", "configs", "experiments", "kernels", "tests")
    for path in sorted((ROOT / folder).rglob("*.*"))
] + [path.relative_to(ROOT) for path in sorted(ROOT.glob("*.*"))]

_BLOCK = re.compile(r"^```.*?^```", re.M | re.S)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FILE = re.compile(r"[\w./-]+\.(?:py|txtpb|toml)\b|requirements[\w-]*\.txt|(?:docs|tests)/[\w/-]+\.md")
_PLACEHOLDER = re.compile(r"\b[A-Z]+\.py$")  # configs/X.py
_NO_KEY = ("json", "jsonl", "md", "model", "npy", "png", "py")  # endings of files that runs write


def code_of(text: str) -> str:
    """The code blocks and the `words in backticks` of a page, with continued lines joined."""
    words = re.findall(r"`([^`\n]+)`", _BLOCK.sub("", text))
    return "\n".join([*_BLOCK.findall(text), *words]).replace("\\\n", " ")


def missing_files(text: str) -> list[str]:
    """Source files in code that are no end of any path of the repository."""
    named = {path for path in _FILE.findall(code_of(text)) if not _PLACEHOLDER.search(path)}
    there = {"/".join(path.parts[start:]) for path in SOURCES for start in range(len(path.parts))}
    return sorted(path for path in named if path not in there and not (ROOT / path).exists())


def broken_links(text: str, *, page: Path) -> list[str]:
    """Links within the repository that lead to no file, or to no heading of a page."""
    broken = []
    for link in _LINK.findall(text):
        path, _, heading = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / path if path else page
        if not target.exists() or (heading and f"#{heading}" not in _headings(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


def _headings(text: str) -> set[str]:
    lines = re.findall(r"^#+ (.+)$", _BLOCK.sub("", text), re.M)
    return {"#" + re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def documented_keys() -> set[str]:
    """The keys of docs/config.md and the sections that hold them; NAME stands for a user's name."""
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    keys = re.findall(r"^(?:# )?([a-z_]\w*(?:\.\w+)*)(?= = |: |\.NAME: )", text, re.M)
    keys += re.findall(r"^# (\w+(?:\.\w+)+):", text, re.M)
    configs = [
        adapt,
        arabic,
        compare,
        compare_corpora,
        corpus,
        damage,
        english,
        evaluate,
        judge,
        native_alignment,
        over_training,
        review,
        seed,
        tokenizer,
    ]
    for config in configs:  # their inputs
        keys += [field.name for variant in config.INPUTS.values() for field, _ in fields_of(type(variant))]
    parts = [key.split(".") for key in keys]
    return {".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)} | {"task", "SECTION.KEY"}


def unknown_keys(text: str, *, keys: set[str]) -> list[str]:
    """Keys that a page sets or names and that no task has."""
    code = code_of(text)
    of_users = re.compile("|".join(re.escape(key).replace("NAME", r"\w+") for key in keys if "NAME" in key))
    found = re.findall(r"--config\.([\w.*]+)=", code)
    found += re.findall(r"--set \"?([\w.*]+)=", code)
    found += re.findall(r"^config\.([\w.]+) = ", code, re.M)
    sections = {key for key in keys if "." not in key}
    dotted = [key.removeprefix("config.") for key in re.findall(r"^[a-z_]\w*(?:\.\w+)+(?= = |$)", code, re.M)]
    found += [key for key in dotted if key.split(".")[0] in sections and key.split(".")[-1] not in _NO_KEY]
    bare = {key: re.sub(r"^stage\.(\w+|\*)\.", "", key) for key in found}
    return sorted(key for key, name in bare.items() if name not in keys and not of_users.fullmatch(name))


def unknown_flags(text: str) -> list[str]:
    """Flags of `run.py` in commands that nothing defines."""
    source = "".join((ROOT / path).read_text(encoding="utf-8") for path in ("run.py", "allam_jax/launch/flags.py"))
    defined = set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", source)) | {"help"}
    commands = re.findall(r"(?:python run\.py|^allam) .*$", code_of(text), re.M)
    flags = {flag for command in commands for flag in re.findall(r" --([\w-]+)", command)}
    return sorted(flag for flag in flags if flag.replace("-", "_") not in defined)


def missing_modules(text: str) -> list[str]:
    """Modules of `python -m` commands, and dotted names of ours, whose module is no file."""
    code = code_of(text)
    names = set(re.findall(r"python -m ((?:allam_jax|benchmarks|kernels)[\w.]*)", code))
    names |= {name.rpartition(".")[0] for name in re.findall(r"^allam_jax\.\w+\.\w[\w.]*", code, re.M)}
    names |= set(re.findall(r"^from ((?:allam_jax|configs|kernels)[\w.]*) import", code, re.M))
    paths = {name: ROOT / name.replace(".", "/") for name in names}
    return sorted(name for name, path in paths.items() if not path.with_suffix(".py").exists() and not path.is_dir())


@pytest.fixture(scope="module")
def keys():
    return documented_keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page, keys):
    text = page.read_text(encoding="utf-8")
    assert missing_files(text) == []
    assert broken_links(text, page=page) == []
    assert unknown_keys(text, keys=keys) == []
    assert unknown_flags(text) == []
    assert missing_modules(text) == []


def test_every_room_and_central_type_is_where_the_architecture_page_says():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for room in (ROOT / "allam_jax").iterdir():
        name = f"{room.name}/" if room.is_dir() else room.name
        assert name.startswith("__") or re.search(rf"^  {re.escape(name)} ", text, re.M), name
    rows = re.findall(r"^\| (`\w+`.*?) \| (`[\w/]+(?:\.py)?/?`.*?) \| .+ \|$", text, re.M)
    assert len(rows) > 10
    for types, places in rows:
        files = [file for place in re.findall(r"`([\w/.]+)`", places) for file in _python_files(place)]
        source = "".join(file.read_text(encoding="utf-8") for file in files)
        for name in re.findall(r"`(\w+)`", types):
            assert re.search(rf"^(class {name}\b|{name} = )", source, re.M), f"{name} in {places}"


def _python_files(place: str) -> list[Path]:
    path = next(ROOT / folder / place for folder in ("allam_jax", "") if (ROOT / folder / place).exists())
    return sorted(path.glob("*.py")) if path.is_dir() else [path]


def test_mistakes_are_found(tmp_path, keys):
    (tmp_path / "page.md").write_text("# A page, with `code`\n")
    text = """
`nowhere.py`, `training/llama.py`, `model/llama.py`, `configs/X.py`, [a](none.md) [b](page.md#a-page-with-code)
[c](page.md#other) `data.seq_length` `data.seq_len` `metrics.jsonl`

```
python run.py --workdri DIR --stage base \\
  --config.stage.base.train.stepz=1 --config.data.sources.web.path=x --config.tokenizer=DIR
python -m kernels.workshop.nothing
config.data.phases.mid.from_stepp = 3
```
"""
    assert missing_files(text) == ["nowhere.py", "training/llama.py"]
    assert broken_links(text, page=tmp_path / "other.md") == ["none.md", "page.md#other"]
    assert unknown_keys(text, keys=keys) == [
        "data.phases.mid.from_stepp",
        "data.seq_length",
        "stage.base.train.stepz",
    ]
    assert unknown_flags(text) == ["workdri"]
    assert missing_modules(text) == ["kernels.workshop.nothing"]


def test_files_of_requirements_are_those_that_a_package_can_have():
    """`pip install -e .` reads them: one requirement a line, and no other file."""
    dynamic = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]
    named = [dynamic["dependencies"], *dynamic["optional-dependencies"].values()]
    lines = [line for entry in named for file in entry["file"] for line in (ROOT / file).read_text().splitlines()]
    wanted = [Requirement(line.partition(" #")[0]).name for line in lines if line and not line.startswith("#")]
    assert {"jax", "starlette", "lm_eval"} <= set(wanted)
