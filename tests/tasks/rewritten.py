"""Documents that tests rewrite, and what became of them."""

import re

from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset
from allam_jax.data.documents import DocumentSource

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
