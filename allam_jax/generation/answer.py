"""One sample of a request while it is under way: from ids to text, log-probabilities and an end."""

from collections.abc import Collection, Iterable

from allam_jax.generation.requests import Delta, FinishReason, Request, TokenLogprob
from allam_jax.generation.streaming import Detokenizer, StopTexts
from allam_jax.tokenizer.tokenizer import Tokenizer


class Answer:
    """What a sample has been given so far, and when it ends. `stop_ids` are the request's and the engine's."""

    def __init__(
        self,
        request: Request,
        sample: int,
        *,
        tokenizer: Tokenizer | None,
        stop_ids: Collection[int],
        prompt_logprobs: tuple[TokenLogprob | None, ...],
    ):
        self.request, self.sample = request, sample
        self.length = 0  # tokens so far
        self._stop_ids = stop_ids
        self._detokenizer = Detokenizer(tokenizer, request.prompt_ids) if tokenizer else None
        self._stops = StopTexts(request.sampling.stop_texts)
        self._prompt_logprobs = prompt_logprobs  # until they are given

    def extend(self, tokens: Iterable[TokenLogprob]) -> Delta:
        """The new part of the answer. Tokens behind its end are left out."""
        ids: list[int] = []
        logprobs: list[TokenLogprob] = []
        texts: list[str] = []
        finish: FinishReason | None = "length" if self._full else None
        for token in tokens:
            if finish is not None:
                break
            if token.token_id in self._stop_ids:
                finish = "stop"
                break
            ids.append(token.token_id)
            logprobs.append(token)
            self.length += 1
            if self._detokenizer is not None:
                text, stopped = self._stops.push(self._detokenizer.push(token.token_id))
                texts.append(text)
                if stopped:
                    return self._delta(ids, texts, logprobs, "stop")
            if self._full:
                finish = "length"
        if finish is not None:
            texts.append(self._rest())
        return self._delta(ids, texts, logprobs, finish)

    def cancelled(self) -> Delta:
        """The last part of an answer that is given up."""
        return self._delta([], [self._rest()], [], "cancelled")

    @property
    def _full(self) -> bool:
        return self.length >= self.request.sampling.max_new_tokens

    def _rest(self) -> str:
        """The text that was held back; it may yet hold a stop text."""
        if self._detokenizer is None:
            return ""
        text, stopped = self._stops.push(self._detokenizer.flush())
        return text if stopped else text + self._stops.flush()

    def _delta(self, ids: list, texts: list, logprobs: list, finish: FinishReason | None) -> Delta:
        asked = self.request.sampling.logprobs is not None
        given, self._prompt_logprobs = self._prompt_logprobs, ()
        return Delta(
            name=self.request.name,
            sample=self.sample,
            ids=tuple(ids),
            text="".join(texts),
            logprobs=tuple(logprobs) if asked else (),
            finish_reason=finish,
            prompt_logprobs=given,
        )
