"""Damages files one byte at a time and sees that nothing is read as if it were whole.

    python tests/tasks/damage.py 2000

makes a workdir, weights, exports, a tokenizer, a dataset and a token cache, and damages a file of them 2,000 times:
flips a bit, cuts the end off, or appends bytes. After each, task `verify` or the reader of that file must name the
damage, or what is read must be what was written.
"""

import contextlib
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from allam_jax.config import save
from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset
from allam_jax.data.documents import DocumentSource
from allam_jax.data.token_cache import TokenSource
from allam_jax.data.token_writer import write_tokens
from allam_jax.errors import UserError
from allam_jax.model.llama import init_params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.tasks.verify import verify
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.training.checkpoints import Checkpointer
from allam_jax.training.load import load_model, read_run, save_run
from allam_jax.training.metrics import MetricsWriter, read_metrics
from allam_jax.training.settings import CheckpointSettings, MetricsSettings
from allam_jax.training.stored_checkpoints import restore_checkpoint, step_path
from allam_jax.weights.directory import save_weights
from allam_jax.weights.huggingface import export_huggingface

SETTINGS = {"dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 16}
OPTIONS = {"vocab_multiple": 32, "max_position": 32, "tie_embeddings": False, "norm_eps": 1e-5, "rope_theta": 1e4}
TEXTS = [f"{word} and {other} are words {i}" for i in range(30) for word, other in (("one", "two"), ("three", "four"))]


def make(root: Path) -> None:
    """Writes one of everything that is read again."""
    documents = [Document(text=text, id=str(i), source="en", language="en") for i, text in enumerate(TEXTS)]
    write_dataset(documents, directory=root / "dataset", name="en", validation_share=0.2)
    tokenizer = train_sentencepiece(TEXTS, output=root / "tokenizer", vocab_size=300)
    write_tokens(root / "dataset", split="train", tokenizer=tokenizer, directory=root / "tokens")
    config = LlamaConfig(vocab_size=tokenizer.vocab_size, **SETTINGS, **OPTIONS)
    params = jax.jit(init_params, static_argnames="config")(jax.random.key(0), config=config)
    told = {"tokenizer_dir": root / "tokenizer", "params": params, "config": config}
    save_weights(root / "weights", metadata={"tokenizer": tokenizer.fingerprint}, **told)
    export_huggingface(root / "huggingface", generation={"eos_token_id": 2}, **told)
    (root / "run").mkdir()
    save(ConfigDict({"task": "train", "seed": 0}), workdir=root / "run")
    save_run(root / "run", config=config, tokenizer_dir=root / "tokenizer", name="a run")
    state = state_of(params)
    with (
        Checkpointer(root / "run" / "checkpoints", CheckpointSettings()) as checkpointer,
        MetricsWriter(root / "run", MetricsSettings(tensorboard=False)) as writer,
    ):
        for step in (1, 2):
            writer.write(step, {"loss": 1 / step})
            writer.flush()
            metadata = {"metrics": writer.written, "config": {"param_dtype": "float32"}, "step": step}
            checkpointer.save(step, state=state, data={"lane": {"0": step}}, metadata=metadata)


def state_of(params: Any) -> dict[str, Any]:
    return {"params": params, "step": jnp.int32(3), "moments": jax.tree.map(lambda p: p + 1, params)}


def same(value: Any) -> Any:
    """For comparing: arrays as their bytes."""
    return jax.tree.map(lambda x: np.asarray(x).tobytes() if hasattr(x, "dtype") else x, value)


def readers(root: Path) -> dict[str, Callable[[], Any]]:
    """Place -> what tasks read there."""
    config = read_run(root / "run")
    like = jax.eval_shape(lambda: state_of(init_params(jax.random.key(0), config=config)))
    here = jnp.zeros(()).sharding
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)

    def model(name: str) -> Any:
        loaded = load_model(root / name)
        tokens = Tokenizer.load(loaded.tokenizer_dir).encode("one and two") if loaded.tokenizer_dir else None
        return loaded.params, loaded.config, loaded.metadata, tokens

    def checkpoint(step: int) -> Any:
        return tuple(restore_checkpoint(step_path(root / "run/checkpoints", step), abstract_state=abstract))

    def documents() -> Any:
        splits = [DocumentSource(root / "dataset", split=split) for split in ("train", "validation")]
        return [[source[i] for i in range(len(source))] for source in splits]

    def tokens() -> Any:
        source = TokenSource(root / "tokens", split="train")
        return [source[i] for i in range(len(source))], source.fingerprint, source.targets, source.tokenizer

    def tokenizer() -> Any:
        loaded = Tokenizer.load(root / "tokenizer")
        return loaded.fingerprint, loaded.encode("one and two", bos=True), loaded.special_tokens

    return {
        "run/checkpoints/1": lambda: checkpoint(1),
        "run/checkpoints/2": lambda: checkpoint(2),
        "run/metrics.jsonl": lambda: read_metrics(root / "run/metrics.jsonl"),
        "run/tokenizer": lambda: Tokenizer.load(root / "run/tokenizer").fingerprint,
        "run/model.json": lambda: read_run(root / "run"),
        "run": lambda: read_run(root / "run"),
        "weights": lambda: model("weights"),
        "huggingface": lambda: model("huggingface"),
        "dataset": documents,
        "tokens": tokens,
        "tokenizer": tokenizer,
    }


@contextlib.contextmanager
def damaged(path: Path, draw: random.Random) -> Iterator[str]:
    """A file with one damage, which is then undone."""
    content = path.read_bytes()
    kind = draw.choice(["flip", "flip", "cut", "append"]) if content else "append"
    if kind == "flip":
        at = draw.randrange(len(content))
        changed = content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
        kind = f"flip at {at}"
    elif kind == "cut":
        changed = content[: draw.choice([0, len(content) - 1, draw.randrange(len(content))])]
        kind = f"cut to {len(changed)}"
    else:
        changed = content + draw.choice([b"\0", b"\n", b" ", b"x", draw.randbytes(9)])
        kind = f"appended {changed[len(content) :]!r}"
    try:
        path.write_bytes(changed)
        yield kind
    finally:
        path.write_bytes(content)


def try_damages(root: Path, *, count: int, seed: int) -> Counter[str]:
    """How often damage was found by whom. AssertionError for one that nobody noticed and that changed something."""
    read = readers(root)
    original = {place: same(reader()) for place, reader in read.items()}
    files = sorted(path for path in root.rglob("*") if path.is_file())
    draw, found = random.Random(seed), Counter[str]()
    for number in range(count):
        path = files[number % len(files)] if number < len(files) else draw.choice(files)
        name = path.relative_to(root).as_posix()
        place = max((place for place in read if name == place or name.startswith(f"{place}/")), key=len)
        with damaged(path, draw) as kind:
            rows = [row for row in verify(root) if row.state == "damaged"]
            verified = any(name.split("/")[0] in str(row.path) and row.reasons for row in rows)
            named = any(path.name in reason for row in rows for reason in row.reasons)
            assert not verified or named, f"{name}, {kind}: verify does not name the file: {rows}"
            error = ""
            try:
                outcome = "same values" if same(read[place]()) == original[place] else "OTHER VALUES"
            except UserError as refused:
                outcome, error = "refused", str(refused)
            assert not error or str(root / name.split("/")[0]) in error, f"{name}, {kind}: {error}"
            # Rows of metrics are compared with the checkpoint by verify and by a resume.
            silent = outcome == "OTHER VALUES" and not (verified and path.name == "metrics.jsonl")
            assert not silent, f"{name}, {kind}: read as if it were whole (verify: {verified})"
            found[f"{'verify names it' if verified else 'verify sees nothing'}, reader: {outcome}"] += 1
    return found


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        print(json.dumps(try_damages(Path(folder), count=int(sys.argv[1]), seed=0), indent=1))
