"""The analytic model of a training step: what one GPU computes, moves, sends and keeps, from formulas alone.

It ranks hundreds of meshes in a second, and it also describes runs of other frameworks. The compiled program
(`planning/compiled_step.py`) is more exact; tests compare the two.

Letters: L layers, D width, N and K query and key/value heads, H head size, F feed-forward width, V padded vocabulary,
T sequence; m tokens of a micro-batch on one GPU; t GPUs share heads, feed-forward width and vocabulary of a layer, f
share the width of the parameters. The sharding table (parallel/sharding.py) says over which mesh axes.
"""

import dataclasses
import math
from collections.abc import Mapping

from allam_jax.model.llama_config import LlamaConfig
from allam_jax.parallel.sharding import DEFAULT_RULES, pieces
from allam_jax.planning.collectives import Collective
from allam_jax.planning.gpu_cluster import Cluster
from allam_jax.planning.step_work import Work
from allam_jax.training.run_description import RunDescription

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_HLO_NAME = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remat:
    """A rematerialisation policy: the shares of the forward pass that the backward pass computes a second time."""

    projections: float  # query, key, value, output, gate and up
    down: float
    attention: float
    elementwise: float


# With nothing recomputed, norms and SwiGLU keep their parts as separate arrays; each is written and read this often.
_UNFUSED = 5

# Our policies (model/llama.py). "full" does not repeat the product with `down`, which is the last in a layer.
REMAT = {
    "none": Remat(projections=0, down=0, attention=0, elementwise=0),
    "dots": Remat(projections=0, down=0, attention=0, elementwise=1),
    "full": Remat(projections=1, down=0, attention=1, elementwise=1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """One training step on a mesh."""

    model: LlamaConfig
    mesh: Mapping[str, int]  # size of each axis, from the slowest network to the fastest
    rows: int  # sequences of one micro-batch on one batch shard
    accumulation: int
    seq_len: int
    remat: str | Remat
    compute_dtype: str = "bfloat16"
    loss_chunks: int = 8
    # "fused" attention keeps no T x T array in memory; "materialized" attention is plain matmuls and a softmax.
    attention: str = "fused"
    backward_attention_matmuls: int = 7  # with separate kernels for dQ and for dK, dV; 5 with one kernel
    gathers: int = 7  # per layer: XLA gathers each matrix separately
    # What other frameworks cost more than a compiled step: traffic of norms, residual sums and activations where each
    # operation is a kernel of its own; time of matrix products and attention with kernels made for older GPUs.
    unfused: float = 1.0
    older_matmul: float = 1.0
    older_attention: float = 1.0
    # Between matmuls each tensor GPU has its own positions, as in our step (Megatron, 2205.05198).
    sequence_parallel: bool = True

    @property
    def policy(self) -> Remat:
        """The rematerialisation policy."""
        return REMAT[self.remat] if isinstance(self.remat, str) else self.remat

    @property
    def t(self) -> int:
        """GPUs that share the heads, the feed-forward width and the vocabulary of a layer."""
        return pieces("heads", self.mesh)

    @property
    def f(self) -> int:
        """GPUs that share the width of the parameters."""
        return pieces("embed", self.mesh)

    @property
    def tokens(self) -> int:
        """m, the tokens of one micro-batch on one GPU. The GPUs along `tensor` share them."""
        return self.rows * self.seq_len

    @property
    def residual_share(self) -> float:
        """The share of a micro-batch's residual stream that one GPU holds."""
        return 1 / self.t if self.sequence_parallel else 1.0

    @property
    def tokens_per_step(self) -> int:
        """The tokens in a batch of the whole cluster."""
        return self.tokens * self.accumulation * pieces("batch", self.mesh)

    @property
    def kv_heads(self) -> float:
        """K on one GPU. If `tensor` does not divide the heads, each GPU has all of them."""
        K = self.model.num_kv_heads
        return K / self.t if K % self.t == 0 else K

    @property
    def layer_parameters(self) -> float:
        """Matrix elements of one layer on one tensor shard, gathered over `fsdp`."""
        c, t = self.model, self.t
        return c.dim * (c.head_dim * (2 * c.num_heads / t + 2 * self.kv_heads) + 3 * c.mlp_dim / t)

    @property
    def table_parameters(self) -> float:
        """Elements of one table (embedding or head) on one tensor shard, gathered over `fsdp`."""
        return self.model.padded_vocab_size * self.model.dim / self.t

    @property
    def shard_parameters(self) -> float:
        """Elements of all parameters that one GPU stores and updates."""
        c = self.model
        tables = self.table_parameters * (1 if c.tie_embeddings else 2)
        return (c.num_layers * self.layer_parameters + tables) / self.f


def workload_of(run: RunDescription) -> Workload:
    """The analytic model's view of a run."""
    return Workload(
        model=run.model,
        mesh=run.mesh,
        rows=run.rows_per_shard,
        accumulation=run.accumulation,
        seq_len=run.seq_len,
        remat=run.options.remat,
        compute_dtype=run.options.compute_dtype,
        loss_chunks=run.loss_chunks,
        attention="materialized" if run.options.attention == "xla" else "fused",
    )


def attention_flops(workload: Workload, *, matmuls: float) -> float:
    """Operations of `matmuls` products of T x T with H in one layer and micro-batch on one GPU.

    Fused attention skips the masked half of each.
    """
    c, t = workload.model, workload.t
    full = 2.0 * workload.tokens * workload.seq_len * c.num_heads * c.head_dim / t * matmuls
    return full if workload.attention == "materialized" else full / 2


def work_of_step(workload: Workload) -> list[Work]:
    """All matmuls, attention and memory-bound work of one step on one GPU."""
    c, w, m = workload.model, workload.policy, workload.tokens
    t = workload.t
    A, L, size = workload.accumulation, c.num_layers, BYTES[workload.compute_dtype]
    D, F, NH, KH = c.dim, c.mlp_dim / t, c.num_heads * c.head_dim / t, workload.kv_heads * c.head_dim
    down = D * F
    others = workload.layer_parameters - down

    # Three passes (forward, gradient of the input, gradient of the weight) read two operands and write a result.
    def product(name: str, elements: float, recomputed: float, rest: float) -> Work:
        passes = 3 + recomputed
        return Work(
            kind="matmul",
            flops=2.0 * m * elements * passes * workload.older_matmul,
            bytes=(elements + m * rest) * size * passes,
            count=A * L,
            source=name,
        )

    def memory(name: str, traffic: float, count: int) -> Work:
        return Work(kind="memory", flops=0.0, bytes=traffic, count=count, source=name)

    matmuls = 2 + workload.backward_attention_matmuls + 2 * w.attention
    # Norms, residual sums, rotation and SwiGLU read and write activations; backward costs twice as much.
    heads = 4 * (NH + KH) * (1 + c.qk_norm)
    elementwise = (12 * D * workload.residual_share + heads + 3 * F) * (3 + w.elementwise)
    if workload.remat == "none":
        elementwise += _UNFUSED * (saved_elements(workload) - _dots(workload))
    V = c.padded_vocab_size / t
    chunk, chunks = m / workload.loss_chunks, A * workload.loss_chunks
    head_bytes = chunk * (2 * D + 3 * V) * size * 2 + 3 * D * V * size
    work = [
        product("down", down, w.down, F + D),
        product("projections", others, w.projections, 5 * D + 2 * NH + 2 * KH + 2 * F),
        _attention_work(workload, matmuls=matmuls, io=(2 * NH + 2 * KH) * m * size * (3 + w.attention)),
        memory("elementwise", m * size * elementwise * workload.unfused, A * L),
        Work(
            kind="matmul",
            flops=2.0 * chunk * D * V * 3 * workload.older_matmul,
            bytes=head_bytes,
            count=chunks,
            source="head",
        ),
        # The softmax writes and reads float32 logits; the head's gradient is summed in float32 over the chunks.
        memory("loss", 24.0 * chunk * V + 8.0 * D * V, chunks),
        # AdamW reads four arrays and writes three; clipping needs a norm; the parameters are cast.
        memory("optimizer", 38.0 * workload.shard_parameters, 1),
    ]
    if A > 1:
        work.append(memory("accumulation", 12.0 * workload.shard_parameters, A))
    return work


def _attention_work(workload: Workload, *, matmuls: float, io: float) -> Work:
    c = workload.model
    if workload.attention == "materialized":
        # Scores are written, masked, normalised, dropped out in one or two passes, and read again; so is the backward.
        scores = workload.tokens * workload.seq_len * c.num_heads / workload.t * BYTES[workload.compute_dtype]
        touches = 6 * (1 + workload.policy.attention) + 9
        io = io + touches * scores
    flops = attention_flops(workload, matmuls=matmuls) * workload.older_attention
    return Work(kind="kernel", flops=flops, bytes=io, count=workload.accumulation * c.num_layers)


def collectives_of_step(workload: Workload, *, cluster: Cluster) -> list[Collective]:
    """The collectives that XLA derives from the sharding rules (parallel/sharding.py) in one step.

    The cluster decides which groups leave a node. GPUs along the mesh's last axis are neighbours.
    """
    mesh, A, L = workload.mesh, workload.accumulation, workload.model.num_layers
    fsdp, tensor = DEFAULT_RULES.mesh_axes("embed"), DEFAULT_RULES.mesh_axes("heads")
    data = tuple(axis for axis in DEFAULT_RULES.mesh_axes("batch") if axis not in fsdp)
    dtype, size = _HLO_NAME[workload.compute_dtype], BYTES[workload.compute_dtype]
    layer, table, f = workload.layer_parameters, workload.table_parameters, workload.f
    found: list[Collective] = []

    def add(kind: str, axes: tuple[str, ...], dtype: str, payload: float, count: int) -> None:
        axes = tuple(axis for axis in axes if mesh[axis] > 1)
        if axes and count:
            found.append(
                Collective(
                    kind=kind,
                    axes=axes,
                    dtype=dtype,
                    payload_bytes=round(payload),
                    group_size=math.prod(mesh[axis] for axis in axes),
                    ranks_per_node=ranks_per_node(axes, mesh=mesh, gpus_per_node=cluster.gpus_per_node),
                    count=count,
                )
            )

    # Each layer is gathered for the forward and again for the backward pass, then its gradients are scattered.
    add("all-gather", fsdp, dtype, layer / workload.gathers * size, 2 * A * L * workload.gathers)
    add("reduce-scatter", fsdp, dtype, layer * size, A * L)
    add("all-gather", fsdp, dtype, table * size, A)
    add("reduce-scatter", fsdp, "f32", table * 4, A)
    add("all-reduce", data, dtype, layer / f * size, A * L)
    add("all-reduce", data, "f32", table / f * 4, 2 * A)
    activations = workload.tokens * workload.model.dim * size
    # Embeddings are looked up in slices of the width; an all-to-all sorts them by token, forward and backward.
    add("all-to-all", fsdp, dtype, activations * workload.residual_share, 2 * A)
    products = 4 + workload.policy.projections  # attention and MLP, forward and backward; perhaps one recomputed
    if workload.sequence_parallel:
        gathers = 4 + 2 * workload.policy.projections
        add("all-gather", tensor, dtype, activations, round(A * L * gathers))
        add("reduce-scatter", tensor, dtype, activations, round(A * L * products))
    else:
        add("all-reduce", tensor, dtype, activations, round(A * L * products))
    add("all-reduce", tensor, dtype, activations, 2 * A)  # embedding, gradient of the head's input
    return found


def ranks_per_node(axes: tuple[str, ...], *, mesh: Mapping[str, int], gpus_per_node: int) -> int:
    """The members on one node of a group of GPUs along `axes`, which are neighbours in the mesh."""
    names = list(mesh)
    stride = math.prod(mesh[axis] for axis in names[names.index(axes[-1]) + 1 :])
    return max(1, min(math.prod(mesh[axis] for axis in axes), gpus_per_node // stride))


def _dots(workload: Workload) -> float:
    """Elements of a token that "dots" keeps: layer input, output product, gate, up, q, k, v, attention's result."""
    c, t = workload.model, workload.t
    heads = (2 * c.num_heads / t + 2 * workload.kv_heads) * c.head_dim
    return 2 * c.dim * workload.residual_share + heads + 2 * c.mlp_dim / t


def saved_elements(workload: Workload) -> float:
    """Elements that one layer keeps per token for the backward pass, in the compute dtype.

    Raises:
        ValueError: the policy is that of another framework.
    """
    c, t = workload.model, workload.t
    D = c.dim * workload.residual_share
    F, NH, KH = c.mlp_dim / t, c.num_heads * c.head_dim / t, workload.kv_heads * c.head_dim
    if workload.remat == "full":
        return D
    if workload.remat == "dots":
        return _dots(workload)
    if workload.remat == "none":
        # Per norm three float32 arrays and the result; attention's result in two shapes; six parts of SwiGLU.
        head_norms = 7 * (NH + KH) if c.qk_norm else 0
        return 14 * D + 3 * NH + 2 * KH + head_norms + 6 * F
    raise ValueError(f"remat {workload.remat!r}: the memory of another framework's policy is unknown")


def working_bytes(workload: Workload) -> float:
    """The largest temporary memory at one time, beside saved activations and gradients."""
    c, m, size = workload.model, workload.tokens, BYTES[workload.compute_dtype]
    t = workload.t
    copies = c.num_layers * workload.layer_parameters / workload.f * size  # cast before the scan
    gathered = 2 * workload.layer_parameters * size  # a layer and, prefetched, the next
    layer = m * size * (6 * c.dim + (4 * c.num_heads * c.head_dim + 6 * c.mlp_dim) / t)
    if workload.attention == "materialized":
        layer += 3 * 4 * m * workload.seq_len * c.num_heads / t
    V = c.padded_vocab_size / t
    loss = 10.0 * m / workload.loss_chunks * V + (8 + 2 * size) * c.dim * V
    return copies + max(gathered + layer, loss)


def gradient_bytes(workload: Workload, *, param_bytes: int) -> float:
    """Bytes of the gradients: layers in the compute dtype, tables in the parameters' dtype. Accumulation adds float32
    sums of all gradients."""
    layers = workload.model.num_layers * workload.layer_parameters / workload.f
    tables = workload.shard_parameters - layers
    held = layers * BYTES[workload.compute_dtype] + tables * param_bytes
    return held + (4 * workload.shard_parameters if workload.accumulation > 1 else 0)


def activation_bytes(workload: Workload) -> float:
    """Bytes that are saved from the forward for the backward pass of one micro-batch."""
    size = BYTES[workload.compute_dtype]
    per_token = workload.model.num_layers * saved_elements(workload) + 2 * workload.model.dim
    return math.ceil(workload.tokens * per_token * size)
