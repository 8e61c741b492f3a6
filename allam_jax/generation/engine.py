"""The engine: requests in, deltas out, one prefill or one burst a step. (Its signatures; the inside follows.)"""

from collections.abc import Iterable, Iterator, Sequence

from jax.sharding import Mesh

from allam_jax.generation.requests import Completion, Delta, Request
from allam_jax.generation.settings import EngineSettings
from allam_jax.model.llama import Params
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.tokenizer.tokenizer import Tokenizer


class Engine:
    """Continues many requests at a time, on a cache of keys and values."""

    def __init__(
        self,
        params: Params,
        *,
        config: LlamaConfig,
        options: ComputeOptions,
        settings: EngineSettings,
        tokenizer: Tokenizer | None = None,
        eos_ids: Sequence[int] = (),
        mesh: Mesh | None = None,
    ):
        raise NotImplementedError

    def submit(self, request: Request) -> None:
        """Queues a request. UserError: no prompt, too long for the capacity, an id outside the vocabulary."""
        raise NotImplementedError

    def cancel(self, name: str) -> None:
        """Ends a request: its samples finish as "cancelled" in the next step. An unknown name is ignored."""
        raise NotImplementedError

    def step(self) -> list[Delta]:
        """One prefill and/or one burst of decoding; [] when idle."""
        raise NotImplementedError

    @property
    def busy(self) -> bool:
        """Whether a request is queued or under way."""
        raise NotImplementedError

    @property
    def free_slots(self) -> int:
        """Slots that no sample occupies."""
        raise NotImplementedError

    @property
    def queued(self) -> int:
        """Samples that wait for a slot."""
        raise NotImplementedError

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """The completions of all requests, in the order of the input (samples by number); pulls requests lazily."""
        raise NotImplementedError
