"""What it takes to rewrite or translate a corpus with a worker: the slots that fit, tokens a second, GPU hours.

Copies of the worker work beside each other, each with its slots (`generation/engine.py`). A text costs a prefill of its
prompt, and a step of decoding for each token of its answer, up to the end of a burst. A step serves all slots. Both are
pieces of work on a roofline: products read the weights once, attention reads the keys and values of the texts.
"""

import dataclasses
import functools
import math

from allam_jax.model.llama_config import LlamaConfig
from allam_jax.planning.collectives import Collective
from allam_jax.planning.generation_cost import BYTES, GenerationCost, generation_cost
from allam_jax.planning.gpu_cluster import Cluster
from allam_jax.planning.roofline import collective_seconds, work_seconds
from allam_jax.planning.step_work import Work

_DTYPE = "bfloat16"
_HOUR = 3600.0  # seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What a worker is asked: numbers of tokens, on average.

    Attributes:
        documents: tokens of all documents.
        piece: tokens of a piece.
        instruction: tokens of a prompt beside its piece.
        answer: tokens of an answer.
        attempts: times that a piece is asked.
    """

    documents: float
    piece: float
    instruction: float
    answer: float
    attempts: float

    @property
    def prompt(self) -> float:
        """Tokens of a prompt."""
        return self.instruction + self.piece

    @property
    def texts(self) -> float:
        """The number of prompts that are answered."""
        return self.documents / self.piece * self.attempts


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewritePlan:
    """A corpus, a worker and a cluster.

    Attributes:
        model: the worker's shapes.
        cluster: where it works.
        gpus: of a node that share a copy.
        asked: the texts.
        capacity: tokens of a slot.
        wanted_slots: of a copy; 0: as many as fit.
        burst: tokens between two looks at the queue.
    """

    model: LlamaConfig
    cluster: Cluster
    gpus: int
    asked: Asked
    capacity: int
    wanted_slots: int
    burst: int

    @functools.cached_property
    def cost(self) -> GenerationCost:
        """Weights, cache and the slots that fit."""
        return generation_cost(self.model, cluster=self.cluster, gpus=self.gpus, tokens=self.capacity)

    @property
    def slots(self) -> int:
        """Texts that a copy can answer at a time."""
        return self.wanted_slots or self.cost.slots

    @property
    def busy(self) -> int:
        """Slots of a copy that have a text: a small corpus does not fill them all."""
        return min(self.slots, max(1, math.ceil(self.asked.texts * self.gpus / self.cluster.size)))

    @property
    def prefill_seconds(self) -> float:
        """Of one prompt: causal attention, and products with all weights but the head's."""
        prompt, head = self.asked.prompt, self.model.vocab_size * self.model.dim
        products = 2 * (self._weights - head) * prompt / self.gpus
        attention = 2 * self._attention_width * prompt**2 / self.gpus
        return self._seconds(products, read=self.cost.weights) + self._attention(attention) + self._reduced(prompt)

    @property
    def step_seconds(self) -> float:
        """Of one token in every busy slot; the texts in the slots are halfway through their answers."""
        context = self.asked.prompt + self.asked.answer / 2
        products = 2 * self._weights * self.busy / self.gpus
        attention = 4 * self._attention_width * context * self.busy / self.gpus
        cache = self.cost.token * context * self.busy
        seconds = self._seconds(products, read=self.cost.weights) + self._attention(attention, read=cache)
        return seconds + self._reduced(self.busy)

    @property
    def text_seconds(self) -> float:
        """That a copy spends on a text: its prefill, and its share of the steps until the burst in which it ends."""
        steps = self.asked.answer + (self.burst - 1) / 2
        return self.prefill_seconds + steps * self.step_seconds / self.busy

    @property
    def answer_tokens_per_second(self) -> float:
        """Of answers, on one GPU."""
        return self.asked.answer / (self.text_seconds * self.gpus)

    @property
    def gpu_hours(self) -> float:
        """Of the whole corpus."""
        return self.asked.texts * self.text_seconds * self.gpus / _HOUR

    @property
    def hours(self) -> float:
        """On the whole cluster, all of whose GPUs work; a corpus of a few texts takes as long as one of them."""
        return max(self.asked.texts * self.gpus / self.cluster.size, 1) * self.text_seconds / _HOUR

    @property
    def _weights(self) -> float:
        """Elements of all matrices that a token is multiplied with."""
        return self.model.flops_per_token(0) / 6

    @property
    def _attention_width(self) -> int:
        return self.model.num_layers * self.model.num_heads * self.model.head_dim

    def _seconds(self, flops: float, *, read: float) -> float:
        return work_seconds(Work(kind="matmul", flops=flops, bytes=read, count=1), cluster=self.cluster, dtype=_DTYPE)

    def _attention(self, flops: float, *, read: float = 0.0) -> float:
        return work_seconds(Work(kind="kernel", flops=flops, bytes=read, count=1), cluster=self.cluster, dtype=_DTYPE)

    def _reduced(self, tokens: float) -> float:
        """Sums over the GPUs of a copy: behind attention and behind the MLP of every layer."""
        if self.gpus == 1:
            return 0.0
        one = Collective(
            kind="all-reduce",
            axes=("tensor",),
            dtype="bf16",
            payload_bytes=round(BYTES * tokens * self.model.dim),
            group_size=self.gpus,
            ranks_per_node=self.gpus,
            count=2 * self.model.num_layers,
        )
        return one.count * collective_seconds(one, cluster=self.cluster)
