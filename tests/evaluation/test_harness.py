"""Task `harness` beside lm_eval's own Hugging Face model, which reads our export: same files and tasks, by item."""

import json

import numpy as np
import pyarrow.parquet
import pytest
from llama_pair import random_torch_llama
from small_server import make_tokenizer, serving

from allam_jax.errors import UserError
from allam_jax.evaluation.items import read_items
from allam_jax.generation.engine import Engine
from allam_jax.generation.settings import EngineSettings
from allam_jax.model.llama_config import ComputeOptions
from allam_jax.tasks import runner
from allam_jax.tokenizer.ready_templates import READY
from allam_jax.weights.huggingface import import_huggingface
from configs import base

pytestmark = [pytest.mark.parity, pytest.mark.slow]
WORDS = ["the", "cat", "sat", "on", "mat", "and", "dog", "ran", "قال", "رسول", "الله", "صلى", "عليه", "وسلم"]
CHANCE = np.random.default_rng(0)


def text(count):
    return " ".join(CHANCE.choice(WORDS, count))


def rows(count, **fields):
    return [{name: make(number) for name, make in fields.items()} for number in range(count)]


ITEMS = rows(
    7,
    id=lambda i: f"s{i % 2}-{i}",
    question=lambda i: text(4 + i),
    choices=lambda i: [text(2), text(1) + " x", text(3)],
    answer=lambda i: i % 3,
    whole=lambda i: text(60 if i == 3 else 9),
)
# Every kind of task, as files of the harness.
KINDS = {
    "letters": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nأ. {{choices[0]}}\nب. {{choices[1]}}\nج. {{choices[2]}}\nالإجابة:",
        "doc_to_choice": ["أ", "ب", "ج"],
        "doc_to_target": "answer",
        "num_fewshot": 2,
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
    },
    "texts": {
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
    },
    "no_context": {
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
    },
    "many_contexts": {  # as in Winogrande: one continuation, a context for each choice
        "output_type": "multiple_choice",
        "doc_to_text": "answer",
        "doc_to_choice": "choices",
        "doc_to_target": "{{question}}",
    },
    "last_word": {"output_type": "loglikelihood", "doc_to_text": "question", "doc_to_target": "the mat"},
    "rolling": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "whole"},
    "generated": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "the",
        "generation_kwargs": {"until": ["dog", "\n\n"], "max_gen_toks": 9},
    },
    "random_examples": {
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "num_fewshot": 2,
        "fewshot_split": "train",
    },
}
CHATS = {name: KINDS[name] for name in ("letters", "texts", "generated", "random_examples")}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model with its tokenizer, and task files."""
    import torch

    directory = tmp_path_factory.mktemp("harness")
    tokenizer = make_tokenizer()
    model = random_torch_llama(
        vocab_size=tokenizer.vocab_size,
        num_key_value_heads=2,
        max_position_embeddings=96,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    with torch.no_grad():  # no bytes: transformers shows a run of them that is no UTF-8 otherwise than we do
        silent = [i for i in range(tokenizer.vocab_size) if tokenizer.is_byte(i) or tokenizer.is_special(i)]
        model.lm_head.weight[silent] = 0
    model.save_pretrained(directory / "model")
    tokenizer.save(directory / "model")
    (directory / "model" / "files.json").unlink()  # the list of the tokenizer's files alone
    (directory / "model" / "chat_template.jinja").write_text(READY["chatml"])
    for split, some in (("test", ITEMS), ("train", ITEMS[::-1])):
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    files = {split: str(directory / f"{split}.jsonl") for split in ("test", "train")}
    (directory / "tasks").mkdir()
    for name, task in KINDS.items():
        described = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            **task,
        }
        (directory / "tasks" / f"{name}.yaml").write_text(json.dumps(described))
    return directory


@pytest.fixture(scope="module")
def theirs(root):
    """What lm_eval's own model answers for our export of the model: task -> responses of each item."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    config = base.get_config("export")
    config.init.weights = str(root / "model")
    exported = runner.run(config, workdir=root / "export")["huggingface"]
    model = HFLM(pretrained=exported, dtype="float32", device="cpu", batch_size=4)
    manager = TaskManager(include_path=str(root / "tasks"), include_defaults=False)

    def evaluate(names, **given):
        return simple_evaluate(model=model, tasks=list(names), task_manager=manager, bootstrap_iters=0, **given)

    return evaluate


def config_of(root, **harness):
    config = base.get_config("harness")
    config.init.weights = str(root / "model")
    config.likelihood.row_tokens, config.likelihood.rows = 64, 1
    config.engine.slots = 4
    config.harness.update(include_path=str(root / "tasks"), **harness)
    return config


def logged(workdir, task):
    (file,) = workdir.glob(f"lm_eval/*/samples_{task}_2*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def _logprobs(sample, *, task):
    given = sample["filtered_resps"]
    return np.array([one if task == "rolling" else one[0] for one in given], float)


def assert_same(ours, theirs, *, task):
    for sample, other in zip(ours, theirs, strict=True):
        assert sample["doc_id"] == other["doc_id"]
        if task == "generated":
            assert sample["resps"] == other["resps"]
            continue
        found, expected = _logprobs(sample, task=task), _logprobs(other, task=task)
        np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)
        assert found.argmax() == expected.argmax()


@pytest.mark.parametrize("as_chat", [pytest.param(False, marks=pytest.mark.long), True], ids=["plain", "chat"])
def test_every_kind_of_task(root, theirs, tmp_path, as_chat):
    names = CHATS if as_chat else KINDS
    result = runner.run(config_of(root, tasks=tuple(names), as_chat=as_chat), workdir=tmp_path)
    given = {"apply_chat_template": True, "system_instruction": None} if as_chat else {}
    found = theirs(names, **given)
    for name in names:
        assert_same(logged(tmp_path, name), found["samples"][name], task=name)
    assert result["texts"] == found["results"]["texts"]["acc,none"]
    (aggregated,) = tmp_path.glob("lm_eval/*/results_*.json")
    ours = json.loads(aggregated.read_text())["results"]
    for name in names:
        for metric, value in found["results"][name].items():
            if isinstance(value, float):
                assert ours[name][metric] == pytest.approx(value, rel=1e-3)


def test_suites_of_own_files(root, tmp_path):
    """Letters and texts, examples of the subject, other orders; what is wrong in a file is counted and named."""
    good = rows(
        12,
        id=lambda i: f"{'ab'[i % 2]}-{i}",
        question=lambda i: text(5),
        A=lambda i: "one " + text(2),
        B=lambda i: "two " + text(2),
        C=lambda i: "three",
        D=lambda i: "",
        answer=lambda i: ("A", "ب", "c", "three")[i % 4],
    )
    for row in good:
        del row["D"]
    bad = [
        good[0],
        {**good[1], "id": "x1", "B": ""},
        {**good[1], "id": "x2", "answer": "E"},
        {**good[1], "id": "x3", "question": " "},
        {**good[1], "id": "x4", "answer": None},
    ]
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in good + bad]
    (tmp_path / "items.jsonl").write_bytes(
        b"\n".join([*lines, '{"id": "x5", "question": "\xe9"}'.encode("latin-1"), b""])
    )
    (tmp_path / "examples.jsonl").write_bytes(b"\n".join(lines[:8]))
    config = config_of(root)
    config.harness.include_path = ""
    config.harness.suites.exam = base.suite(
        path=str(tmp_path / "items.jsonl"), examples=str(tmp_path / "examples.jsonl"), shots=2, subject="id"
    )
    config.harness.suites.exam.categories = {"a": "letters", "b": "letters"}
    config.harness.suites.facts = base.suite(
        path=str(tmp_path / "facts.csv"),
        columns=("question", "answer"),
        fixed_choices=("نعم", "لا"),
        prompt="{question}؟",
    )
    (tmp_path / "facts.csv").write_text("".join(f'"{text(4)}, {i}",{("نعم", "لا")[i > 6]}\n' for i in range(9)))
    runner.run(config, workdir=tmp_path / "run")
    found = json.loads((tmp_path / "run" / "harness.json").read_text())["choices"]
    exam, facts = found["exam"], found["facts"]
    assert exam["items"] == 12
    assert exam["left_out"] == {
        "an id that an earlier item has": 1,
        "a missing choice": 1,
        "an answer in field 'answer' that is none of the choices": 2,
        "no text in field 'question'": 1,
        "a row with invalid UTF-8": 1,
    }
    assert set(exam["subjects"]) == {"a", "b"}
    assert exam["categories"]["letters"]["items"] == 12
    assert exam["chance"] == pytest.approx(1 / 3)
    assert exam["majority"] == 0.5  # C: every third answer and every fourth
    assert exam["flips"]["items"] == 12
    assert facts["majority"] == pytest.approx(7 / 9)
    assert "flips" not in facts
    samples = {s["doc"]["id"]: s for s in (*logged(tmp_path / "run", "exam_a"), *logged(tmp_path / "run", "exam_b"))}
    assert samples["b-1"]["doc"]["answer"] == 1
    assert samples["b-3"]["doc"]["answer"] == 2
    prompt = samples["a-2"]["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.count("Answer:") == 3
    assert good[0]["question"] in prompt
    assert good[1]["question"] not in prompt  # of the other subject
    hits = sum(np.argmax([float(r[0][0]) for r in s["resps"]]) == s["doc"]["answer"] for s in samples.values())
    assert exam["accuracy"] == hits / 12
    report = (tmp_path / "run" / "harness.md").read_text()
    assert "a row with invalid UTF-8" in report
    assert "another choice" in report
    assert good[0]["question"] in (tmp_path / "run" / "prompts.md").read_text()


def test_what_cannot_be_asked(root, tmp_path):
    with pytest.raises(UserError, match="give tasks of the harness"):
        runner.run(config_of(root), workdir=tmp_path)
    config = config_of(root)
    config.harness.suites.exam = base.suite(path=str(root / "test.jsonl"), choices="choices", shots=3)
    with pytest.raises(UserError, match="suites.exam.examples: is empty, but shots = 3"):
        runner.run(config, workdir=tmp_path)
    config.harness.suites.exam.update(examples=str(root / "train.jsonl"), shots=8)
    with pytest.raises(UserError, match="7 items, but shots = 8"):
        runner.run(config, workdir=tmp_path)
    config.harness.suites.exam.update(shots=4, subject="id")
    with pytest.raises(UserError, match="3 of subject 's1', but shots = 4"):
        runner.run(config, workdir=tmp_path)
    config.harness.suites.exam.question = "text"
    with pytest.raises(UserError, match="no item can be asked .7 with no text in field 'text'"):
        runner.run(config, workdir=tmp_path)


def read(path, rows, **options):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_items(str(path), base.suite(**options), key="x")


def test_a_letter_that_is_also_the_text_of_another_choice_is_refused(tmp_path):
    blood = {"question": "Whose blood can all be given?", "A": "AB", "B": "O", "C": "A", "D": "B"}
    found = read(tmp_path / "a.jsonl", [{**blood, "id": answer, "answer": answer} for answer in ("A", "B", "C", "O")])
    assert [(item.id, item.choices[item.answer]) for item in found.items] == [("C", "A"), ("O", "O")]
    assert found.problems == {
        "an answer in field 'answer' that is the text of one choice and the letter of another": ("A", "B")
    }
    # The letter and the text mean the same; and fixed choices have no letters that could be meant.
    same = {"question": "First?", "A": "A", "B": "B", "answer": "B"}
    assert [item.answer for item in read(tmp_path / "b.jsonl", [same]).items] == [1]
    fixed = read(tmp_path / "c.jsonl", [{"question": "?", "answer": "A"}], fixed_choices=("B", "A"))
    assert [item.answer for item in fixed.items] == [1]


def test_values_of_an_item_that_cannot_be_used_are_counted(tmp_path):
    good = {"question": "?", "A": "w", "B": "x", "C": "y", "answer": "A"}
    answers = (float("nan"), float("inf"), 1.5, "1" * 5000, 1.0, "2")
    rows = [{**good, "id": str(number), "answer": answer} for number, answer in enumerate(answers)]
    rows += [{**good, "id": "half", "question": "\ud83d"}, {**good, "id": "part", "A": "\udc00"}]
    rows += [{**good, "id": "id\ud83d"}, {**good, "id": "none", "B": float("nan")}]
    found = read(tmp_path / "a.jsonl", rows)
    assert [(item.id, item.answer) for item in found.items] == [("4", 1), ("5", 2)]
    assert found.problems == {
        "an answer in field 'answer' that is none of the choices": ("0", "1", "2", "3"),
        "half a character (a lone surrogate)": ("half", "part", "id\\ud83d"),
        "a missing choice": ("none",),
    }


def test_numbers_beside_letters_in_one_file_need_a_first_number(tmp_path):
    """Where some items are answered by A to D and some by 1 to 4, in one file."""
    rows = [{"question": "?", "A": "w", "B": "x", "C": "y", "D": "z", "id": a, "answer": a} for a in ("B", "1", "2")]
    found = read(tmp_path / "a.jsonl", rows)
    assert [item.id for item in found.items] == ["B"]
    ((reason, ids),) = found.problems.items()
    assert reason.startswith("a number as answer, beside letters")
    assert ids == ("1", "2")
    labels = read(tmp_path / "b.jsonl", [*rows, {**rows[0], "id": "w", "answer": "w"}], first_number=1)
    assert [item.answer for item in labels.items] == [1, 0, 1, 0]
    zero = read(tmp_path / "c.jsonl", [*rows, {**rows[0], "id": "zero", "answer": 0}])
    assert [item.answer for item in zero.items] == [1, 1, 2, 0]
    numbers = read(tmp_path / "d.jsonl", rows[1:])  # without letters, the setting says where they begin
    assert [item.answer for item in numbers.items] == [1, 2]


def test_files_of_one_name_in_several_folders(tmp_path):
    for subject in ("biology", "physics"):
        (tmp_path / "all" / subject).mkdir(parents=True)
        read(tmp_path / "all" / subject / "test.jsonl", [{"question": subject, "A": "w", "B": "x", "answer": "B"}])
    for path in (tmp_path / "all", tmp_path / "all" / "*" / "test.jsonl"):
        found = read_items(str(path), base.suite(), key="x")
        assert [item.id for item in found.items] == ["biology/test.jsonl:1", "physics/test.jsonl:1"]
        assert not found.problems


def test_parquet_with_arabic_letters(tmp_path):
    table = {"question": ["س"], "أ": ["1x"], "ب": ["2x"], "ج": ["3x"], "د": ["4x"], "answer": ["ب"]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "ar.parquet")
    (item,) = read_items(str(tmp_path / "ar.parquet"), base.suite(), key="x").items
    assert (item.choices, item.answer) == (("1x", "2x", "3x", "4x"), 1)


@pytest.mark.long
def test_tasks_of_the_package(root, tmp_path):
    """An unknown name, and data that are not there; the package's list of tasks takes ten seconds to read."""
    with pytest.raises(UserError, match="no task 'lettres'; did you mean letters"):
        runner.run(config_of(root, tasks=("lettres",)), workdir=tmp_path)
    with pytest.raises(UserError, match="task arabicmmlu: its data cannot be opened"):
        runner.run(config_of(root, tasks=("arabicmmlu",)), workdir=tmp_path)


ARABIC = ("arabicmmlu", "aexams", "alghafa", "arab_culture*", "arabic_leaderboard_*", "aradice", "egy*", "darija*")


@pytest.mark.long
def test_arabic_tasks_of_the_package_resolve_without_data():
    """Every task file of these folders names what it needs; only their data are missing here."""
    from pathlib import Path

    import lm_eval
    from lm_eval.config.task import TaskConfig
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(lm_eval.__file__).parent / "tasks"
    files = [file for name in ARABIC for file in sorted(folder.glob(f"{name}/**/*.yaml"))]
    assert len(files) > 200
    kinds = set()
    for file in files:
        described = load_yaml(file)
        if "task" in described and "group" not in described and isinstance(described["task"], str):
            kinds.add(TaskConfig(**described).output_type)
    assert kinds == {"generate_until", "multiple_choice"}


@pytest.mark.long
def test_through_the_server(root, theirs):
    """lm_eval's client of OpenAI's API, asking our server, gets what its own model computes."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    tokenizer = make_tokenizer()
    params, config = import_huggingface(root / "model")
    settings = EngineSettings(slots=4, burst=4)
    engine = Engine(
        params,
        config=config,
        options=ComputeOptions(),
        settings=settings,
        tokenizer=tokenizer,
        eos_ids=(tokenizer.eos_id,),
    )
    with serving(engine, tokenizer) as served:
        model = LocalCompletionsAPI(
            model="small/model",
            base_url=f"{served.url}/v1/completions",
            tokenizer=str(root / "model"),
            tokenizer_backend="huggingface",
            add_bos_token=True,  # as the tokenizer does, which its own model asks
            max_length=96,
            batch_size=2,
        )
        manager = TaskManager(include_path=str(root / "tasks"), include_defaults=False)
        names = ["texts", "last_word"]
        found = simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0)
    expected = theirs(names)
    for name in names:
        assert_same(found["samples"][name], expected["samples"][name], task=name)
