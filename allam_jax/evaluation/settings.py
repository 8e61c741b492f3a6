"""Settings of evaluations: held-out text, suites of questions, a judge, and votes of people."""

from collections.abc import Mapping

from allam_jax.corpus.settings import TextsSettings
from allam_jax.data.settings import SourceSettings
from allam_jax.errors import UserError
from allam_jax.generation.settings import TEMPLATE, EndpointSettings, SamplingSettings
from allam_jax.settings import Section, entries, nested, setting


class EvalSettings(Section, name="eval"):
    """What is evaluated, and in which windows."""

    sources: Mapping[str, SourceSettings] = entries('base.mixture(path=..., split="validation"); named by language')
    every: int = setting(0, "steps between evaluations of a training run; 0 evaluates at the end only", least=0)
    max_bytes: int = setting(0, "text of a source; 0 takes everything", least=0, most=2**53)
    batch_size: int = setting(8, "rows of a batch", least=1)
    seq_len: int = setting(
        0, "tokens of a window; 0: those of a training row, or the longest context that the model knows", least=0
    )
    loss_chunks: int = setting(4, "the logits exist one chunk of the sequence at a time", least=1)


class LikelihoodSettings(Section, name="likelihood", changes_results=False):
    """How many texts are scored at a time."""

    rows: int = setting(
        0,
        "a batch has as many tokens as so many rows of row_tokens, on each device that cuts it; 0: 4, on CPUs 1",
        least=0,
    )
    row_tokens: int = setting(
        512, "tokens of a row at most, which many short texts share; longer texts get longer rows", least=32
    )


class SuiteSettings(Section):
    """Questions with choices, in files of the user's."""

    path: str = setting("", "file, folder or pattern (JSON Lines, CSV, TSV, Parquet)", path="texts")
    examples: str = setting("", "the same with the worked examples of few-shot prompts", path="texts")
    shots: int = setting(0, "worked examples before a question, the first of its subject", least=0)
    columns: tuple[str, ...] = setting((), "names of the columns of CSV files without a first line of names")
    question: str = setting("question", "field with the question, or the text that is gone on from")
    answer: str = setting("answer", "field with the right choice: its letter, its text, or its number")
    first_number: int = setting(0, "number of the first choice, where answers are numbers", least=0, most=1)
    choices: str = setting(
        "", "field with the choices: a list, or texts with labels as in ARC; empty: fields A, B, C, ..."
    )
    fixed_choices: tuple[str, ...] = setting((), "the choices of every question, such as yes and no")
    subject: str = setting("", "field with the subject; `file`: the file's name; `id`: the beginning of the id")
    categories: Mapping[str, str] = entries("subject -> category, under which the report adds up")
    letters: tuple[str, ...] = setting(
        ("A", "B", "C", "D", "E", "F"), "letters of the choices, which are scored; (): the text of the choice is"
    )
    prompt: str = setting("{question}\n{choices}\nAnswer:", "the text that is asked")
    instruction: str = setting("", "text before all examples and the question; {subject} is replaced")
    items: int = setting(0, "items, drawn by the seed; 0: all", least=0)


class HarnessSettings(Section, name="harness"):
    """Which suites a model is asked, through lm-evaluation-harness."""

    tasks: tuple[str, ...] = setting((), "tasks or groups of the harness, by name")
    include_path: str = setting("", "folder with further task files of the harness", path="files")
    suites: Mapping[str, SuiteSettings] = entries("suites of the user's files: base.suite(...)")
    shots: int = setting(-1, "worked examples of the harness's tasks; -1: each task's own number", least=-1)
    limit: int = setting(0, "items of each of the harness's tasks, the first ones; 0: all", least=0)
    permuted: bool = setting(True, "ask suites that show their choices in another order too, and count other answers")
    as_chat: bool = setting(False, "questions are messages of a user, in the chat template")
    system: str = setting("", "the system message of chats; empty: none")
    template: str = setting("", TEMPLATE, path="template")
    max_new_tokens: int = setting(256, "tokens of an answer, where a task states none", least=1)
    hub: bool = setting(False, "allow downloads of data sets from the Hugging Face hub")

    def check(self) -> None:
        """UserError for a name that is no file's."""
        for name in self.suites:
            if not name.replace("_", "").replace("-", "").isalnum():
                raise UserError(f"config.harness.suites.{name}: expected a name of letters, digits, _ and -")


class ProgramsSettings(SamplingSettings, name="programs", version=2):
    """Problems in HumanEval's form, whose programs run in a sandbox."""

    input: str = setting("", "JSON Lines with task_id, prompt, entry_point, test; canonical_solution too", path="files")
    samples: int = setting(1, "programs for each problem; above 1, set a temperature", least=1, most=1024)
    ks: tuple[int, ...] = setting((1,), "numbers k of pass@k, at most samples", least=1)
    max_new_tokens: int = setting(512, "tokens of a program", least=1)
    as_chat: bool = setting(
        False, "a problem is the message of a user, in whose answer the first block that defines the function counts"
    )
    instruction: str = setting(
        "Complete this Python function. Answer with the whole function in one block of code.\n\n"
        "```python\n{prompt}\n```",
        "message of the user, with {prompt}",
    )
    template: str = setting("", TEMPLATE, path="template")
    seconds: int = setting(5, "of processor time of a program", least=1, most=3600)
    memory_mib: int = setting(1024, "of a program's address space, the interpreter's included", least=128, most=1 << 24)
    workers: int = setting(4, "programs at a time", least=1, most=256)
    shard_rows: int = setting(100, "problems of a file of answers", least=1)
    max_error_share: float = setting(0.1, "share of problems without answer that ends the run", least=0, most=1)
    endpoint: EndpointSettings = nested(EndpointSettings, "a server that answers instead")

    def check(self) -> None:
        """UserError for what samples cannot give."""
        if not self.ks or max(self.ks) > self.samples:
            raise UserError(f"config.programs.ks = {self.ks}: expected numbers from 1 to samples = {self.samples}")
        if self.samples > 1 and self.temperature == 0:
            raise UserError(
                f"config.programs.samples = {self.samples}: at temperature 0 all are the same; set a temperature"
            )
        if "{prompt}" not in self.instruction:
            raise UserError("config.programs.instruction: has no {prompt}, where the problem comes")


class SuiteEvalSettings(HarnessSettings, name="suite_eval"):
    """Suites that a model under training is asked."""

    every: int = setting(0, "steps between evaluations; 0 evaluates at the end only", least=0)
    permuted: bool = setting(False, "ask suites that show their choices in another order too")


class ProbeSettings(Section, name="probe"):
    """What a model that learns a second language knows, keeps and can do, in both languages."""

    countries: int = setting(120, "whose capital is asked; 0: all", least=0)
    untaught: bool = setting(False, "ask only for capitals that task instruction_data never teaches")
    shots: tuple[int, ...] = setting((0, 5), "worked examples before a question for a capital", least=0)
    lists: int = setting(12, "of words that are copied", least=2)
    list_words: int = setting(20, "of such a list", least=2)
    verses: int = setting(100, "whose translation is looked for by hidden states", least=2)
    read_verses: int = setting(40, "of them, which are read for bits per byte and speed", least=2)
    prompts: tuple[str, ...] = setting(
        (
            "عاصمة مصر هي",
            "قال رسول الله صلى الله عليه وسلم",
            "كان يا ما كان في قديم الزمان",
            "The capital of France is",
            "Once upon a time",
        ),
        "texts that are gone on from",
    )
    max_new_tokens: int = setting(40, "tokens of a continuation", least=1)


class SuiteCurvesSettings(Section, name="suite_curves"):
    """Scores of suites over a training run."""

    stages: Mapping[str, str] = entries(
        "step_N -> directory of the harness stage of that checkpoint; none: what the run has logged of suite_eval",
        path="stage",
    )
    run: str = setting("", "workdir of the training run, whose loss is drawn too; empty: none", path="stage")


class ContaminationSettings(Section, name="contamination"):
    """Items of suites in training corpora."""

    suites: Mapping[str, SuiteSettings] = entries("base.suite(...), as in harness.suites")
    corpora: Mapping[str, TextsSettings] = entries("base.texts(path=...): corpora that models are trained on")
    words: int = setting(13, "words of an n-gram; a shorter question counts as one n-gram", least=5)
    share: float = setting(0.5, "share of a question's n-grams that must occur in a corpus", above=0, most=1)


class SuiteReportSettings(Section, name="suite_report"):
    """Several models on the same suites."""

    models: Mapping[str, str] = entries("model -> directory of its harness stage", path="stage")
    contamination: str = setting("", "directory of a contamination stage; empty: none", path="stage")
    bootstrap: int = setting(2000, "samples for the intervals of differences", least=100, most=1_000_000)
    failures: int = setting(10, "wrong answers of each suite that are shown", least=0)


class JudgeSamplingSettings(SamplingSettings):
    """How a judge answers."""

    max_new_tokens: int = setting(2048, "tokens of a judgment", least=1)


class JudgeSettings(Section, name="judge"):
    """A judge that grades answers, as MT-bench does."""

    questions: str = setting("", "JSON Lines with question_id, category and turns", path="files")
    answers: Mapping[str, str] = entries(
        "model -> JSON Lines with its answers: question_id and choices[0].turns", path="files"
    )
    prompts: str = setting("", "JSON Lines with the judge's prompts", path="files")
    references: str = setting(
        "", "JSON Lines with reference answers, in the form of answers; empty: none", path="files"
    )
    mode: str = setting("single", "grade each answer, or compare pairs", choices=("single", "pairwise"))
    baseline: str = setting("", "pairwise: the model that all others meet; empty: all pairs")
    reference_categories: tuple[str, ...] = setting(
        ("math", "reasoning", "coding", "arena-hard-200"), "categories whose judge sees the reference answer"
    )
    sampling: JudgeSamplingSettings = nested(JudgeSamplingSettings, "how the judge answers")
    endpoint: EndpointSettings = nested(EndpointSettings, "the judge")
    shard_rows: int = setting(1, "judgments of a file", least=1)
    other: str = setting("", "workdir of another judge of the same answers, to compare with", path="files")
    dry_run: bool = setting(False, "only count requests and their tokens")
    price: float = setting(0.0, "of a million tokens of prompts, for the report", least=0)
    price_answers: float = setting(0.0, "of a million tokens of judgments", least=0)


class ArenaSettings(Section, name="arena"):
    """Votes of people on pairs of answers."""

    pairs: str = setting(
        "", "JSON Lines with question, model_a, answer_a, model_b, answer_b, and id and domain", path="files"
    )
    host: str = setting("127.0.0.1", "address to listen at; 0.0.0.0 is reachable from other machines")
    port: int = setting(8001, "port; 0: a free one", least=0, most=65535)
    title: str = setting("Which answer is better?", "the page's title")
    direction: str = setting("auto", "of the texts", choices=("auto", "rtl", "ltr"))
    raters: int = setting(3, "votes on each pair", least=1, most=100)
    more_raters: int = setting(1, "further votes where the first have no majority", least=0, most=100)
    serve: bool = setting(True, "serve the page until SIGTERM or Ctrl-C; False: only the results of the votes so far")
    both_bad: str = setting(
        "default", "both bad: half a win each, as a tie, or (custom) a loss for both", choices=("default", "custom")
    )
    k_factor: float = setting(4.0, "of Elo: points that a vote moves at most", above=0)
    initial: float = setting(1000.0, "rating of Elo that all begin with", least=0)
    bootstrap: int = setting(1000, "samples for the intervals", least=10, most=100_000)
