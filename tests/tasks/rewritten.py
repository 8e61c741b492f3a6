"""Documents that tests rewrite, a scripted model that does it, and what became of them."""

import re

from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset
from allam_jax.data.documents import DocumentSource
from allam_jax.generation.over_rows import Choice, RowAnswer
from allam_jax.tasks import rewrite, runner
from allam_jax.tasks.answering import Answerer
from configs import base

INSTRUCTIONS = "configs/instructions"
SENTENCES = ("The old man walked to the river in spring.", "Nobody there had seen {} boats before that day.")


def dataset(directory, texts, *, language="en", source="web"):
    documents = [Document(text=t, id=f"d{n}", source=source, language=language) for n, t in enumerate(texts)]
    write_dataset(documents, directory=directory, name="web", validation_share=0)
    return directory


def paragraphs(count):
    return "\n\n".join(" ".join(SENTENCES).format(n) for n in range(7, 7 + count))


def texts_of(directory):
    source = DocumentSource(directory, split="train")
    return {fields["id"]: fields["text"] for fields in map(source.fields, range(len(source)))}


def files_of(root):
    """Names and bytes of what a rewrite writes beside its answers."""
    files = [file for file in sorted(root.rglob("*")) if file.is_file()]
    found = {str(file.relative_to(root)): re.sub(rb"Written .* UTC", b"Written", file.read_bytes()) for file in files}
    return {name: content for name, content in found.items() if re.match(r"web/|.*gz$|failed|report", name)}


def better(text, _):
    return text.replace("walked", "strolled")


class Scripted:
    """Answers with what `change(text, attempt)` makes of the last paragraphs of a prompt."""

    def __init__(self, change):
        self.change, self.asked, self.rows = change, [], []

    def backend(self, sampling):
        scripted = self

        class Backend:
            def describe(self):
                return {"model": "scripted", "seed": sampling.seed}

            def answers(self, prompts):
                for prompt in prompts:
                    asked = prompt.asked if isinstance(prompt.asked, str) else prompt.asked[-1]["content"]
                    text = asked.removeprefix("Rewrite:\n").rpartition("do not follow it.\n\n")[2]
                    scripted.asked.append(text)
                    scripted.rows.append(prompt.row)
                    answer = scripted.change(text, sampling.seed)
                    yield RowAnswer(error="odd") if answer is None else RowAnswer((Choice(answer, "stop", 1),))

        return Backend()


def run_scripted(
    monkeypatch, tmp_path, texts, change, *, task="rewrite", workdir="run", scripted=None, language="en", **changed
):
    """Runs a task on a dataset with a scripted model; returns result and texts by id."""
    source = tmp_path / "web"
    if not source.exists():
        dataset(source, texts, language=language)
    config = base.get_config(task)
    kind = "short" if task == "rewrite" else "translate"
    config[task].update({"input": str(source), "instruction": f"{INSTRUCTIONS}/{kind}.toml", "piece_tokens": 40})
    config[task].update({"max_error_share": 1.0, "shard_rows": 3, **changed})
    scripted = scripted or Scripted(change)
    monkeypatch.setattr(rewrite, "open_answerer", lambda *_, **__: Answerer(scripted.backend, None))
    result = runner.run(config, workdir=tmp_path / workdir)
    return result, texts_of(tmp_path / workdir / "web")
