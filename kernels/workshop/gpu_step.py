"""A training step of a 1B Llama on this machine's accelerator, ours and torch's: speed, memory and a profile.

It imports `allam_jax` where it is used: attention alone does not need its packages.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from kernels.workshop.measure import PartOptions, Record

ROWS, SEQ_LEN = 4, 2048  # 8,192 tokens: fits a GPU of 40 GB with all of AdamW's state in float32
WARM_UP, STEPS, PROFILED = 2, 15, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """A model of `allam_jax.model.llama_config.PRESETS`, shortened where `num_layers` is given, and a batch."""

    model: str
    rows: int
    seq_len: int
    num_layers: int | None = None

    def config(self) -> Any:
        """The model's LlamaConfig."""
        from allam_jax.model.llama_config import preset

        model = preset(self.model)
        return dataclasses.replace(model, num_layers=self.num_layers or model.num_layers)


FULL = Sizes(model="1b", rows=ROWS, seq_len=SEQ_LEN)
TINY = Sizes(model="tiny", rows=2, seq_len=32, num_layers=1)


def our_step(options: PartOptions) -> Iterator[Record]:
    """Seconds and MFU of a step, then its memory beside the planner's figure, then a profile in the report's folder."""
    from allam_jax.planning.gpu_cluster import GPUS, Cluster
    from allam_jax.planning.memory import estimated_memory

    sizes = TINY if options.small else FULL
    jax.config.update("jax_compilation_cache_dir", str(options.folder / "compilation_cache"))
    run, one_step, compiled_bytes = _our_step(sizes)
    cluster = Cluster(gpu=GPUS["h100"], nodes=1, gpus_per_node=1)
    started = time.monotonic()
    first_loss = one_step()
    compile_seconds = time.monotonic() - started
    device = jax.devices()[0]
    speed = _speed(one_step, sizes, run.model, options, device_kind=device.device_kind)
    yield {"what": "allam_jax", "first loss": first_loss, "first step, s": compile_seconds, **speed}
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    yield {
        "what": "memory, bytes",
        "peak in use": peak if peak else f"not known on {device.device_kind}",
        "planner's estimate": estimated_memory(run, cluster=cluster).total,
        "compiler's count": compiled_bytes(),
    }
    profile = str(options.folder / "profile")
    with jax.profiler.trace(profile):
        for _ in range(PROFILED):
            one_step()
    yield {"what": f"profile of {PROFILED} steps", "folder": profile}


def _our_step(sizes: Sizes) -> tuple[Any, Callable[[], float], Callable[[], int]]:
    """The step that `task = "train"` runs, on one device, with random weights and tokens.

    Returns its RunDescription; a function that runs a step and gives its loss; and one that gives the bytes of
    arguments and temporary memory, by the compiler's count.
    """
    import jax.numpy as jnp

    from allam_jax.model.llama_config import ComputeOptions
    from allam_jax.parallel.mesh import batch_sharding, make_mesh
    from allam_jax.training.optimizer import make_optimizer
    from allam_jax.training.run_description import RunDescription
    from allam_jax.training.settings import GuardSettings, OptimizerSettings
    from allam_jax.training.state import random_params, start_state

    run = RunDescription(
        model=sizes.config(),
        options=ComputeOptions(compute_dtype="bfloat16", remat="dots"),
        optimizer=make_optimizer(OptimizerSettings(), schedule=lambda step: jnp.float32(3e-4), guard=GuardSettings()),
        mesh={"data": 1, "fsdp": 1, "tensor": 1},
        batch_size=sizes.rows,
        seq_len=sizes.seq_len,
        accumulation=1,
        param_dtype="float32",
        z_loss=0.0,
        loss_chunks=8,
        num_sources=1,
    )
    mesh = make_mesh(run.mesh, devices=jax.devices()[:1])
    abstract = run.abstract_state(mesh)
    params = random_params(abstract.params, config=run.model, seed=0)
    state = start_state(params, abstract=abstract, optimizer=run.optimizer, seed=0)
    step = run.make_step(mesh)
    ids_BT = tokens(sizes, run.model.vocab_size)
    shape = (sizes.rows, sizes.seq_len)
    batch = {
        "tokens": ids_BT[:, :-1],
        "targets": ids_BT[:, 1:],
        "segment_ids": np.ones(shape, np.int32),
        "positions": np.tile(np.arange(sizes.seq_len, dtype=np.int32), (sizes.rows, 1)),
        "loss_weights": np.ones(shape, np.float32),
        "source_ids": np.zeros(shape, np.int32),
    }
    batch = jax.device_put(batch, batch_sharding(mesh))

    def one_step() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    def compiled_bytes() -> int:
        memory = step.lower(state, batch).compile().memory_analysis()
        assert memory is not None
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes

    return run, one_step, compiled_bytes


def torch_step(options: PartOptions) -> Iterator[Record]:
    """The same sizes by transformers and torch: bfloat16 autocast, fused AdamW, nothing recomputed.

    The model is compiled, except with `options.small`.
    """
    import torch
    import transformers

    sizes = TINY if options.small else FULL
    model = sizes.config()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    network = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=model.dim,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            num_key_value_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            intermediate_size=model.mlp_dim,
            max_position_embeddings=sizes.seq_len,
            tie_word_embeddings=model.tie_embeddings,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )
    ).to(device)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = network if options.small else torch.compile(network)
    ids_BT = torch.tensor(tokens(sizes, model.vocab_size), device=device).long()
    inputs, targets = ids_BT[:, :-1].contiguous(), ids_BT[:, 1:].contiguous()

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            loss = forward(input_ids=inputs, labels=targets, shift_labels=targets, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return float(loss.item())

    started = time.monotonic()
    first_loss = run()
    compile_seconds = time.monotonic() - started
    kind = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    speed = _speed(run, sizes, model, options, device_kind=kind)
    name = f"transformers {transformers.__version__}, torch {torch.__version__}{'' if options.small else ', compiled'}"
    yield {"what": name, "first loss": first_loss, "first step, s": compile_seconds, **speed}
    if device == "cuda":
        yield {"what": "torch's memory, bytes", "peak in use": torch.cuda.max_memory_allocated()}


def tokens(sizes: Sizes, vocab_size: int) -> np.ndarray:
    """Random ids, one more in a row than the model reads."""
    return np.random.default_rng(0).integers(0, vocab_size, (sizes.rows, sizes.seq_len + 1)).astype(np.int32)


def _speed(run: Callable[[], float], sizes: Sizes, model, options: PartOptions, *, device_kind: str) -> Record:
    """Median seconds of a step after the warm-up, and what follows from them."""
    from allam_jax.parallel.gpus import peak_flops

    for _ in range(WARM_UP):
        loss = run()
    seconds: list[float] = []
    while len(seconds) < (3 if options.small else STEPS) and not (seconds and options.is_over):
        started = time.perf_counter()
        loss = run()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    num_tokens = sizes.rows * sizes.seq_len
    flops = model.flops_per_token(sizes.seq_len) * num_tokens
    peak = peak_flops(device_kind, compute_dtype="bfloat16")
    return {
        "last loss": loss,
        "model": f"{model.num_parameters / 1e9:.2f}B, {sizes.rows} x {sizes.seq_len}",
        "steps": len(seconds),
        "median s": median,
        "tokens/s": num_tokens / median,
        "model TFLOP/s": flops / median / 1e12,
        "MFU": flops / median / peak if peak else None,
    }
