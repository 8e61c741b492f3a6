"""The adapter for lm-evaluation-harness: its requests, answered by our likelihood path and our engine.

The harness asks for log-likelihoods of continuations, for those of whole texts (rolling), and for generated text.
Prompts, few-shot examples, metrics and files of results are the harness's own, so scores can be compared with those
that others publish.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from allam_jax.errors import UserError
from allam_jax.evaluation.continuations import TextEncoder
from allam_jax.evaluation.likelihood import Likelihood, Pair
from allam_jax.generation.engine import Engine
from allam_jax.generation.requests import Request, Sampling
from allam_jax.tokenizer.chat_template import ChatTemplate, Rendered
from allam_jax.tokenizer.tokenizer import Tokenizer

_SHOWN = 60  # characters of a text in an error
_PASSED_ON = ("top_p", "top_k", "min_p", "repetition_penalty")  # what tasks may set beside temperature


class HarnessModel(TemplateLM):
    """A model of ours as the harness sees it.

    Args:
        tokenizer: the model's.
        likelihood: scores pairs of ids.
        engine: makes the engine when the first task generates text; most need none.
        template: for chats; None: the model has none.
        max_new_tokens: of an answer, where a task states none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        likelihood: Likelihood,
        engine: Callable[[], Engine],
        template: ChatTemplate | None,
        max_new_tokens: int,
    ):
        super().__init__()
        self.encoder = TextEncoder(tokenizer, template=template)
        self.likelihood_path = likelihood
        self._ours, self._make_engine = tokenizer, engine
        self._engine: Engine | None = None
        self._template, self._max_new_tokens = template, max_new_tokens

    # What the base class asks of a tokenizer.

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self.encoder.prefix_id if self._ours.eos_id is None else self._ours.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without context."""
        return self.encoder.prefix_id

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at most."""
        return self.likelihood_path.max_length

    @property
    def tokenizer_name(self) -> str:
        """Tells apart what different tokenizers and templates make of the same task."""
        return self._ours.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text."""
        return self.encoder.plain(string) if add_special_tokens is False else self.encoder.context(string)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The text of the template."""
        return self._template.source if self._template is not None and chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without generation prompt it ends inside the last message, to go on from it."""
        if self._template is None:
            raise UserError("the model has no chat template: set harness.template")
        rendered = self._template.render(chat_history, add_generation_prompt=add_generation_prompt)
        return self.encoder.remember(rendered if add_generation_prompt else _opened(rendered, chat_history))

    # The three kinds of requests.

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, and whether it is the greedy one."""
        pairs = []
        for request in requests:
            context, continuation = request.args
            context_ids, ids = self.encoder.pair(context, continuation)
            if not ids:
                raise UserError(
                    f"task {request.task_name}: an empty choice after {context[-_SHOWN:]!r}; mend or remove the item"
                )
            pairs.append(Pair(tuple(context_ids or [self.prefix_token_id]), tuple(ids)))
        found = [(score.logprob, score.greedy) for score in self.likelihood_path(pairs)]
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return found

    def _loglikelihood_tokens(self, requests: Sequence[tuple], **kwargs: Any) -> list[tuple[float, bool]]:
        pairs = [Pair(tuple(context), tuple(ids)) for _, context, ids in requests]
        return [(score.logprob, score.greedy) for score in self.likelihood_path(pairs)]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text, in windows of the model's context."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                context, ids = make_disjoint_window(window)
                windows.append(Pair(tuple(context), tuple(ids)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, score in zip(owners, self.likelihood_path(windows), strict=True):
            totals[number] += score.logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that goes on from each context, up to the first stop text."""
        if self._engine is None:
            self._engine = self._make_engine()
        asked = (self._request(number, *request.args) for number, request in enumerate(requests))
        stops = [normalize_gen_kwargs(request.args[1])["until"] for request in requests]
        texts = []
        for completion, stop in zip(self._engine.complete(asked), stops, strict=True):
            # Decoded alone, as the harness's own model does it: SentencePiece then drops the space in front.
            text = self._ours.decode(completion.ids, skip_special=True)
            texts.append(postprocess_generated_text(text, stop, None))
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _request(self, number: int, context: str, given: Mapping[str, Any]) -> Request:
        assert self._engine is not None
        kwargs = dict(normalize_gen_kwargs(dict(given), self._max_new_tokens))
        new = int(kwargs["max_gen_toks"])
        room = min(self.max_length, self._engine.capacity) - new
        if room < 1:
            raise UserError(f"a task asks for {new} new tokens; the model reads {self.max_length} in all: lower them")
        ids = self.encoder.context(context) or [self.prefix_token_id]
        sampling = Sampling(
            max_new_tokens=new,
            temperature=float(kwargs.get("temperature") or 0.0) if kwargs.get("do_sample") else 0.0,
            stop_texts=tuple(stop for stop in kwargs["until"] if stop),
            seed=number,
            **{name: kwargs[name] for name in _PASSED_ON if kwargs.get(name) is not None},
        )
        return Request(str(number), tuple(ids[-room:]), sampling)


def _opened(rendered: Rendered, messages: Sequence[Mapping[str, str]]) -> Rendered:
    """A rendered conversation up to the end of its last message's text: what the template writes behind is left out."""
    last = messages[-1]["content"].strip()
    at = rendered.text.rfind(last)
    if at < 0:
        raise UserError("the chat template changes the last message, so that an answer cannot begin with it")
    end = at + len(last)
    return Rendered(rendered.text[:end], tuple(span for span in rendered.controls if span[1] <= end), ())
