"""From texts to pairs of ids: where a context ends and its continuation begins.

The harness encodes context and continuation together, and cuts at the length of the context's own ids. That is right as
long as these are the beginning of the whole. A piece that merges across the border, such as one that ends the context's
last word, makes the cut fall elsewhere: the continuation loses characters, or is empty. Such a pair is cut by its text:
the context's ids, and the ids of the continuation alone. `Cuts` counts them.
"""

import dataclasses
import json

from allam_jax.tokenizer.chat_template import ChatTemplate, Rendered
from allam_jax.tokenizer.json_model import JsonModel
from allam_jax.tokenizer.sentencepiece_model import SPACE
from allam_jax.tokenizer.tokenizer import Tokenizer

Controls = tuple[tuple[int, int], ...]  # places of a template's control tokens in a text


@dataclasses.dataclass
class Cuts:
    """How pairs were cut."""

    pairs: int = 0
    merged: int = 0  # a piece crosses the border: cut by text


def adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer itself puts a begin-of-text token before a text, as transformers' would."""
    if tokenizer.bos_id is None:
        return False
    if not isinstance(tokenizer.model, JsonModel):
        return True
    processor = json.dumps(tokenizer.model.document.get("post_processor"), ensure_ascii=False)
    return json.dumps(tokenizer.id_to_piece(tokenizer.bos_id), ensure_ascii=False) in processor


class TextEncoder:
    """Encodes what a harness asks.

    Args:
        tokenizer: the model's.
        template: for texts that it has rendered; None: there are none.
        prefix_id: stands before a continuation without context; by default begin-of-text, or end-of-text without one.
    """

    def __init__(self, tokenizer: Tokenizer, *, template: ChatTemplate | None, prefix_id: int | None = None):
        self.cuts = Cuts()
        self._tokenizer, self._template, self._bos = tokenizer, template, adds_bos(tokenizer)
        self._rendered: dict[str, Controls] = {}
        named = (prefix_id, tokenizer.bos_id, tokenizer.eos_id, 0)
        self.prefix_id = next(index for index in named if index is not None)

    def remember(self, rendered: Rendered) -> str:
        """The text of a rendered conversation. Contexts that are this text get the template's control tokens.

        What a message spells stays text, also if it spells a control token.
        """
        self._rendered[rendered.text] = rendered.controls
        return rendered.text

    def context(self, text: str) -> list[int]:
        """Ids of a context, as a model is asked to go on from it."""
        return self._encode(text, controls=self._rendered.get(text))

    def plain(self, text: str) -> list[int]:
        """Ids of a text without begin-of-text."""
        return self._tokenizer.encode(text)

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and of its continuation. White space at the context's end counts to the continuation."""
        self.cuts.pairs += 1
        controls = self._rendered.get(context)
        ending = len(context) - len(context.rstrip())
        if ending:
            context, continuation = context[:-ending], context[-ending:] + continuation
        if not context:
            ids = self._tokenizer.encode(continuation)
            return ([self.prefix_id], ids) if ids[:1] != [self.prefix_id] else (ids[:1], ids[1:])
        context_ids = self._encode(context, controls=controls)
        whole = self._encode(context + continuation, controls=controls)
        if whole[: len(context_ids)] == context_ids and len(whole) > len(context_ids):
            return context_ids, whole[len(context_ids) :]
        self.cuts.merged += bool(continuation)
        return context_ids, self._inside(continuation)

    def _encode(self, text: str, *, controls: Controls | None) -> list[int]:
        bos_id = self._tokenizer.bos_id
        if controls is not None and self._template is not None:
            ids = self._template.encode(Rendered(text, controls, ()))
            # As the harness does it, also where a template writes no begin-of-text.
            return [bos_id, *ids] if self._bos and bos_id is not None and ids[:1] != [bos_id] else ids
        if self._bos and bos_id is not None and text.startswith(self._tokenizer.id_to_piece(bos_id)):
            rest = text[len(self._tokenizer.id_to_piece(bos_id)) :]  # the text brings its own
            return [bos_id, *self._tokenizer.encode(rest)]
        return self._tokenizer.encode(text, bos=self._bos)

    def _inside(self, text: str) -> list[int]:
        """Ids of a text that another one goes before, which no piece joins it to."""
        model = self._tokenizer.model
        if isinstance(model, JsonModel) and model.byte_level:
            return self._tokenizer.encode(text)
        return self._tokenizer.segment_piece(text.replace(" ", SPACE))
