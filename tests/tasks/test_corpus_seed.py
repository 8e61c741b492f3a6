"""The seed of a corpus stage: which documents are held out."""

from allam_jax.data.documents import DocumentSource
from allam_jax.tasks import corpus
from allam_jax.tasks.registry import settings_of
from configs import base


def held_out(tmp_path, *, seed, workdir="a"):
    """The texts of each split, of documents that are lines of a file."""
    config = base.get_config("corpus")
    config.seed = seed
    config.corpus.sources.en = base.documents(path=str(tmp_path / "en.txt"), language="en", validation_share=0.2)
    corpus.run(settings_of(config), tmp_path / workdir)
    sources = [DocumentSource(tmp_path / workdir / "en", split=split) for split in ("train", "validation")]
    return [[source[index] for index in range(len(source))] for source in sources]


def test_another_seed_holds_out_other_documents(tmp_path):
    lines = [f"document number {number}" for number in range(200)]
    (tmp_path / "en.txt").write_text("\n".join(lines) + "\n")
    train, validation = held_out(tmp_path, seed=0)
    assert sorted(train + validation) == sorted(lines)
    assert held_out(tmp_path, seed=0, workdir="b") == [train, validation]
    other_train, other = held_out(tmp_path, seed=1, workdir="c")
    assert sorted(other_train + other) == sorted(lines)
    assert set(other) != set(validation)
    # Independent divisions share about a fifth of what they hold out.
    assert len(set(other) & set(validation)) < 0.6 * len(validation)
    # In a directory that was written with another seed it is written anew.
    assert held_out(tmp_path, seed=1, workdir="a") == [other_train, other]
