"""Which files are read of a folder, of a pattern and of a path, and what is said of the others."""

import os

import pytest

from allam_jax.corpus.found_files import find_files, kind_of
from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError


@pytest.fixture
def tree(tmp_path):
    """Readable files under real and linked folders, and one file of each kind that is not read."""
    root, elsewhere = tmp_path / "texts", tmp_path / "disk2"
    for folder in (root / "a", root / ".ipynb_checkpoints", elsewhere / "deep"):
        folder.mkdir(parents=True)
    for file in (
        "top.jsonl",
        "UPPER.JSONL",
        "b.json.gz",
        "c.ndjson",
        "d.tsv",
        "a/e.jsonl.bz2",
        "a/f.txt.XZ",
        ".ipynb_checkpoints/g.jsonl",
        "._top.jsonl",
        "README.md",
        "info.json",
        "LICENSE",
        "x.tar.gz",
    ):
        (root / file).write_text("")
    (elsewhere / "deep" / "h.jsonl").write_text("")
    (root / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (root / "again").symlink_to(root / "a")
    (root / "annexed.jsonl").symlink_to(tmp_path / "nowhere")
    (root / "loop.jsonl").symlink_to("loop.jsonl")
    os.mkfifo(root / "pipe.jsonl")
    return root


READ = [
    "UPPER.JSONL",
    "a/e.jsonl.bz2",
    "a/f.txt.XZ",
    "b.json.gz",
    "c.ndjson",
    "d.tsv",
    "linked/deep/h.jsonl",
    "top.jsonl",
]


def names(paths, root):
    return sorted(path.relative_to(root).as_posix() for path in paths)


def test_a_folder_and_a_pattern_follow_one_rule(tree):
    for given in (tree, f"{tree}/**", f"{tree}/**/*"):
        found = find_files(str(given))
        assert names(found.files, tree) == READ
        skipped = {reason: names(paths, tree) for reason, paths in found.skipped.items()}
        assert skipped == {
            "hidden": ["._top.jsonl", ".ipynb_checkpoints"],
            "of another kind (.md)": ["README.md"],
            "of another kind (.json)": ["info.json"],
            "of another kind (no suffix)": ["LICENSE"],
            "of another kind (.tar.gz)": ["x.tar.gz"],
            "a link to nothing": ["annexed.jsonl"],
            "too many levels of symbolic links": ["loop.jsonl"],
            "no regular file": ["pipe.jsonl"],
            "a link to a folder that is read already": ["again", "linked/back"],
        }


def test_patterns_agree_with_python_s_glob_where_there_are_no_links(tmp_path):
    import glob

    for file in ("a/x.txt", "a/b/y.txt", "a/b/z.jsonl", "c/x.txt", "x.txt", "[1].txt"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    for pattern in ("*.txt", "*/*.txt", "**/*.txt", "a/**/*.[tj]*", "**/b/*", "a/*/?.txt", "**/x.txt", "a/**"):
        expected = [p for p in glob.glob(pattern, root_dir=tmp_path, recursive=True) if (tmp_path / p).is_file()]
        assert names(find_files(f"{tmp_path}/{pattern}").files, tmp_path) == sorted(set(expected)), pattern
    assert names(find_files(f"{tmp_path}/[1].txt").files, tmp_path) == ["[1].txt"]


def test_folders_below_a_pattern_are_named(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("")
    assert find_files(f"{tmp_path}/*").skipped == {"a folder below the pattern": [tmp_path / "sub"]}


def test_errors_say_what_is_there(tree, tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / ".x.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no files to read in this directory \(.*hidden\); expected .jsonl"):
        find_files(str(hidden))
    with pytest.raises(UserError, match=r"annexed.jsonl: cannot read it \(.*: a link to nothing\)"):
        find_files(str(tree / "annexed.jsonl"))
    with pytest.raises(UserError, match=r"info.json: cannot read it .*JSON Lines are read as .jsonl"):
        find_files(str(tree / "info.json"))


def test_a_folder_of_datasets_names_them(tmp_path):
    for name in ("run/en", "run/ar", "run/deep/er/too"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "dataset_info.json").write_text("{}")
    wanted = f"it holds datasets: give one of {tmp_path}/run/ar, {tmp_path}/run/en$"
    for read in (lambda path: find_files(path), lambda path: DocumentSource(path, split="train")):
        with pytest.raises(UserError, match=wanted):
            read(str(tmp_path / "run"))


def test_kinds(tmp_path):
    assert kind_of(tmp_path / "v1.2.Jsonl.ZST") == "jsonl"
    assert kind_of(tmp_path / "a.warc.gz") == kind_of(tmp_path / "a.WET") == "archive"
    assert kind_of(tmp_path / "a.pq") == "parquet"
    assert kind_of(tmp_path / "a.gz") is None
