"""The engine: requests in, deltas out. It keeps the slots of a cache busy.

A step admits waiting samples into free slots, prefills their prompts, and decodes all slots for a burst. What a request
gets depends on the parameters, the request and the number of slots. It does not depend on its neighbours, on the order
of requests or on the slot, down to the bits, unless prompts are packed.
"""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from allam_jax.errors import UserError
from allam_jax.generation.answer import Answer
from allam_jax.generation.programs import Burst, Programs, Prompts
from allam_jax.generation.requests import MAX_STOP_IDS, Completion, Delta, Request, TokenLogprob, joined
from allam_jax.generation.settings import EngineSettings
from allam_jax.generation.slots import Slots, buckets
from allam_jax.model.kv_cache import KVCache
from allam_jax.model.llama import Params, apart, turned_layers
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.tokenizer.tokenizer import Tokenizer
from kernels import device

# XLA would join products of the same rows into one, and for that copy their weights together at every step.
COMPILER_OPTIONS = {"cuda": {"xla_gpu_dot_merger_threshold_mb": 0}}
_REFILLED = 4  # while samples wait, a burst ends when one of so many slots can take them

_prefill = jax.jit(Programs.prefill, static_argnums=0, donate_argnums=2)
_score = jax.jit(Programs.score, static_argnums=0)
_copy = jax.jit(Programs.copy, static_argnums=0, donate_argnums=1)


@functools.cache
def _decode_for(platform: str):
    options = COMPILER_OPTIONS.get(platform)
    return jax.jit(Programs.decode, static_argnums=0, donate_argnums=2, compiler_options=options)


@dataclasses.dataclass(eq=False)
class _Job:
    """A request that has not ended."""

    request: Request
    waiting: collections.deque[int]  # samples without a slot
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()


class Engine:
    """Continues many requests at a time, on a cache of keys and values.

    Args:
        params: of `Llama(config)`; on `mesh` if that is given. The engine keeps a copy in the compute dtype, layer by
            layer; who needs the memory deletes the original.
        config: shapes.
        options: how to compute; dropout is off, and nothing is kept for a backward pass.
        settings: slots and their capacity, which is the model's context at most.
        tokenizer: for text; without it there are ids only, and no stop texts.
        eos_ids: end every answer.
        mesh: the mesh of sharded parameters. Slots are cut as rows of a batch, heads as those of attention. With
            several processes, all make the same calls with equal arguments.

    Raises:
        UserError: a capacity beyond the model's context.
    """

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
        if settings.capacity > config.max_position:
            raise UserError(
                f"config.engine.capacity = {settings.capacity}: the model's context is {config.max_position}; lower it"
            )
        dtype = jnp.dtype(options.compute_dtype)
        self.capacity = settings.capacity or config.max_position
        self._config, self._settings, self._tokenizer, self._mesh = config, settings, tokenizer, mesh
        self._eos_ids = tuple(eos_ids)
        options = dataclasses.replace(
            options, remat="none", dropout_embedding=0.0, dropout_attention=0.0, dropout_residual=0.0
        )
        platform = device.of_device(jax.devices()[0] if mesh is None else mesh.devices.flat[0]).platform
        self._decode = _decode_for(platform)
        turned = platform == "cpu" and dtype == jnp.float32 and (mesh is None or mesh.size == 1)
        self._programs = Programs(config, options, settings.burst, turned)
        make = functools.partial(KVCache.empty, config, slots=settings.slots, capacity=self.capacity, dtype=dtype)
        sharding = None if mesh is None else NamedSharding(mesh, jax.eval_shape(make).spec(mesh))
        with self._on_mesh():
            self._params = _prepared(params, dtype, turned)
            self._cache: KVCache = jax.jit(make, out_shardings=sharding)()
        longest = max(self._cache.capacity, settings.prefill_tokens * settings.packed)
        self._buckets = buckets(longest)
        self._slots = Slots(settings.slots, self._cache.capacity)
        self._answers: list[Answer | None] = [None] * settings.slots
        self._holders: list[_Job | None] = [None] * settings.slots  # whose prompt each slot has keys and values of
        self._jobs: dict[str, _Job] = {}  # in the order of their requests
        self._cancelled: list[str] = []

    @property
    def busy(self) -> bool:
        """Whether a request is queued or under way."""
        return bool(self._jobs)

    @property
    def slots(self) -> int:
        """Samples that can be under way at a time."""
        return self._settings.slots

    @property
    def free_slots(self) -> int:
        """Slots that no sample occupies."""
        return self._answers.count(None)

    @property
    def queued(self) -> int:
        """Samples that wait for a slot."""
        return sum(len(job.waiting) for job in self._jobs.values())

    def submit(self, request: Request) -> None:
        """Queues a request; UserError if `check` refuses it, or if a request of its name is under way."""
        self.check(request)
        if request.name in self._jobs:
            raise UserError(f"prompt {request.name}: a request of this name is under way")
        self._jobs[request.name] = _Job(request, collections.deque(range(request.sampling.samples)))

    def check(self, request: Request) -> None:
        """Refuses a request that can never be answered. Can be called from any thread.

        Raises:
            UserError: no prompt, an id outside of the vocabulary, too long for a slot, too many stop ids, or stop texts
                without a tokenizer.
        """
        prompt, asked, vocab = request.prompt_ids, request.sampling, self._config.vocab_size
        problem = None
        if not prompt:
            problem = "no tokens: give at least the begin-of-text token"
        elif min(prompt) < 0 or max(prompt) >= vocab:
            problem = (
                f"ids from {min(prompt)} to {max(prompt)}, but the model's vocabulary has {vocab}: encode it with the "
                "tokenizer of these weights"
            )
        elif len(prompt) + asked.max_new_tokens > self.capacity:
            more = ", or raise engine.capacity" if self.capacity < self._config.max_position else ""
            problem = (
                f"{len(prompt)} tokens and max_new_tokens = {asked.max_new_tokens} exceed a slot's {self.capacity}: "
                f"shorten the prompt or lower max_new_tokens{more}"
            )
        elif len(self._stop_ids(request)) > MAX_STOP_IDS:
            problem = f"more than {MAX_STOP_IDS} stop ids, with those of the model"
        elif asked.stop_texts and self._tokenizer is None:
            problem = "stop texts need a tokenizer"
        if problem:
            raise UserError(f"prompt {request.name}: {problem}")

    def cancel(self, name: str) -> None:
        """Ends a request: its samples finish as "cancelled" in the next step. An unknown name is ignored."""
        if name in self._jobs:
            self._cancelled.append(name)

    def step(self) -> list[Delta]:
        """Ends what is cancelled, prefills waiting prompts into free slots, decodes a burst; [] when idle."""
        deltas = [delta for name in dict.fromkeys(self._cancelled) for delta in self._given_up(name)]
        self._cancelled.clear()
        with self._on_mesh():
            self._admit()
            if any(answer is not None for answer in self._answers):
                deltas += self._burst()
        return deltas

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """The completions of all requests, in the order of the input (samples by number).

        Requests are taken from the iterable when there is room for them, two for each slot ahead.
        """
        source, order = iter(requests), collections.deque[tuple[str, int]]()
        deltas: dict[tuple[str, int], list[Delta]] = {}
        exhausted = False
        while order or not exhausted:
            while not exhausted and self.queued < 2 * self.slots:
                request = next(source, None)
                if request is None:
                    exhausted = True
                    break
                self.submit(request)
                order += [(request.name, sample) for sample in range(request.sampling.samples)]
            for delta in self.step():
                deltas.setdefault((delta.name, delta.sample), []).append(delta)
            while order and order[0] in deltas and deltas[order[0]][-1].finish_reason is not None:
                yield joined(deltas.pop(order.popleft()))

    def warm_up(self) -> None:
        """Compiles every program, so that no request waits for a compiler. It needs an idle engine."""
        with self._on_mesh():
            for length in self._buckets:
                nowhere = self._row(length, [])
                self._cache, hidden_BTD = _prefill(self._programs, self._params, self._cache, nowhere)
                _score(self._programs, self._params, hidden_BTD, nowhere.tokens_BT)
            targets_S = np.zeros(self._settings.slots, bool)
            self._cache = _copy(self._programs, self._cache, np.int32(0), targets_S)
            self._cache, _ = self._decode(
                self._programs, self._params, self._cache, self._slots.texts, np.int32(self.slots)
            )

    def _admit(self) -> None:
        """Gives free slots to the waiting samples, first come, first served."""
        free = [slot for slot, answer in enumerate(self._answers) if answer is None]
        budget = self._settings.prefill_tokens
        rows: list[list[tuple[_Job, int]]] = []  # prompts to be prefilled together, and their slots
        seated: list[tuple[_Job, list[int]]] = []
        for job in self._jobs.values():
            if not job.waiting:
                continue
            tokens = len(job.request.prompt_ids) - 1
            held = [slot for slot, holder in enumerate(self._holders) if holder is job]
            if not free or (not held and tokens > budget < self._settings.prefill_tokens):
                break
            # First those that have the prompt already: they must not be given to another request before they are read.
            slots = [slot for slot in free if slot in held] + [slot for slot in free if slot not in held]
            slots = slots[: len(job.waiting)]
            free = [slot for slot in free if slot not in slots]
            if not held:
                if not (rows and self._settings.packed and tokens <= budget):
                    rows.append([])
                rows[-1].append((job, slots[0]))
                budget -= tokens
            seated.append((job, slots))
        for row in rows:
            self._prefill(row)
        for job, slots in seated:
            self._seat(job, slots)

    def _prefill(self, jobs: list[tuple[_Job, int]]) -> None:
        """Fills slots with prompts, all but their last tokens."""
        for job, slot in jobs:
            self._holders[slot] = job
            if job.request.sampling.echo:
                job.prompt_logprobs = (None,)  # nothing is before the first token
        length = sum(len(job.request.prompt_ids) - 1 for job, _ in jobs)
        if not length:
            return
        row = self._row(next(bucket for bucket in self._buckets if bucket >= length), jobs)
        self._cache, hidden_BTD = _prefill(self._programs, self._params, self._cache, row)
        if not any(job.request.sampling.echo for job, _ in jobs):
            return
        next_BT = np.zeros_like(row.tokens_BT)
        next_BT[0, :length] = [index for job, _ in jobs for index in job.request.prompt_ids[1:]]
        scores = [np.asarray(a) for a in _score(self._programs, self._params, hidden_BTD, next_BT)]
        start = 0
        for job, _ in jobs:
            prompt = job.request.prompt_ids
            end = start + len(prompt) - 1
            if job.request.sampling.echo:
                found = _token_logprobs(prompt[1:], *(a[start:end] for a in scores), top=job.request.sampling.logprobs)
                job.prompt_logprobs += found
            start = end

    def _row(self, length: int, jobs: list[tuple[_Job, int]]) -> Prompts:
        """A row of so many tokens with these prompts."""
        row = Prompts(*(np.full((1, length), value, np.int32) for value in (0, 0, 0, self._settings.slots)))
        start = 0
        for segment, (job, slot) in enumerate(jobs, start=1):
            prompt = job.request.prompt_ids[:-1]
            here = slice(start, start + len(prompt))
            for array, values in zip(row, (prompt, segment, range(len(prompt)), slot), strict=True):
                array[0, here] = values
            start = here.stop
        return row

    def _seat(self, job: _Job, slots: list[int]) -> None:
        """Starts samples in slots, of which one or more have the prompt."""
        source = next(slot for slot, holder in enumerate(self._holders) if holder is job)
        targets = [slot for slot in slots if self._holders[slot] is not job]
        if targets and len(job.request.prompt_ids) > 1:
            targets_S = np.isin(np.arange(self._settings.slots), targets)
            self._cache = _copy(self._programs, self._cache, np.int32(source), targets_S)
        stop_ids = self._stop_ids(job.request)
        for slot in slots:
            self._holders[slot] = job
            sample = job.waiting.popleft()
            self._slots.start(slot, job.request, sample, stop_ids=stop_ids)
            self._answers[slot] = Answer(
                job.request,
                sample,
                tokenizer=self._tokenizer,
                stop_ids=stop_ids,
                prompt_logprobs=job.prompt_logprobs,
            )

    def _burst(self) -> list[Delta]:
        """Decodes all slots, and gives what each of them got."""
        texts, deltas = self._slots.texts, []
        ended = int(np.sum(texts.lengths_B >= texts.limits_B))
        if ended < self.slots:
            enough = min(ended + -(-self.slots // _REFILLED), self.slots) if self.queued else self.slots
            self._cache, burst = self._decode(self._programs, self._params, self._cache, texts, np.int32(enough))
            burst = Burst(*map(np.asarray, burst))
        else:  # prompts without an answer
            burst = None
        for slot, answer in enumerate(self._answers):
            if answer is None:
                continue
            tokens: Sequence[TokenLogprob] = ()
            if burst is not None:
                (steps,) = np.nonzero(burst.ids_BX[slot] >= 0)
                parts = [a[slot, steps] for a in burst]
                tokens = _token_logprobs(*parts, top=answer.request.sampling.logprobs)
                self._slots.extend(slot, parts[0])
            deltas.append(answer.extend(tokens))
            if deltas[-1].finish_reason is not None:
                self._release(slot)
        return [delta for delta in deltas if delta.ids or delta.text or delta.finish_reason or delta.prompt_logprobs]

    def _release(self, slot: int) -> None:
        answer = self._answers[slot]
        assert answer is not None
        self._answers[slot] = None
        self._slots.free(slot)
        self._forget_if_done(answer.request.name)

    def _given_up(self, name: str) -> list[Delta]:
        """The ends of a cancelled request's samples."""
        job = self._jobs.get(name)
        if job is None:
            return []
        deltas = []
        for slot, answer in enumerate(self._answers):
            if answer is not None and answer.request is job.request:
                deltas.append(answer.cancelled())
                self._answers[slot] = None
                self._slots.free(slot)
        deltas += [Delta(name, sample, (), "", (), "cancelled") for sample in job.waiting]
        job.waiting.clear()
        self._forget_if_done(name)
        return deltas

    def _forget_if_done(self, name: str) -> None:
        job = self._jobs[name]
        if not job.waiting and not any(a is not None and a.request is job.request for a in self._answers):
            del self._jobs[name]

    def _stop_ids(self, request: Request) -> tuple[int, ...]:
        return tuple(dict.fromkeys((*self._eos_ids, *request.sampling.stop_ids)))

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)


def with_capacity(settings: EngineSettings, longest: int, *, context: int) -> EngineSettings:
    """With room for texts of so many tokens, within the model's context, where the settings leave the capacity open.

    It is rounded up to a bucket, so that similar texts find the programs compiled.
    """
    if settings.capacity:
        return settings
    capacity = next(bucket for bucket in buckets(2 * longest) if bucket >= longest)
    return dataclasses.replace(settings, capacity=min(capacity, context))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _prepared(params: Params, dtype: jnp.dtype, turned: bool) -> Params:
    """In the compute dtype, as the network casts them itself, but once; and apart. The final norm stays as it is."""
    cast = jax.tree.map(lambda w: w.astype(dtype), params)
    layers_apart = apart(cast | {"final_norm": params["final_norm"]})
    return turned_layers(layers_apart) if turned else layers_apart


def _token_logprobs(
    ids: Sequence[int], logprobs: np.ndarray, top_ids: np.ndarray, top_logprobs: np.ndarray, *, top: int | None
) -> tuple[TokenLogprob, ...]:
    """With the `top` likeliest; zeros where no log-probabilities are asked for."""
    count = top or 0
    return tuple(
        TokenLogprob(
            int(index), float(logprob), tuple(zip(some[:count].tolist(), theirs[:count].tolist(), strict=True))
        )
        for index, logprob, some, theirs in zip(ids, logprobs, top_ids, top_logprobs, strict=True)
    )
