"""Chat templates: messages -> text -> ids, with the text that transformers' `apply_chat_template` gives.

Text of a user that spells a control token stays text. Before a template sees a string of a message, the characters with
which a control token could begin or end are replaced by *stand-ins*, private characters that occur nowhere else. So no
operation of the template (joining, cutting, removing) can make a control token out of a message. Afterwards control
tokens are looked for, and only then do the stand-ins become the characters again.
"""

import bisect
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from allam_jax.checksums import read_listed
from allam_jax.errors import UserError, nearest
from allam_jax.tokenizer import template_process
from allam_jax.tokenizer.ready_templates import READY
from allam_jax.tokenizer.stand_ins import StandIns, borders_of, without_marks
from allam_jax.tokenizer.template_worker import CPU_SECONDS, MEMORY_BYTES
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.tokenizer.tokenizer_files import COPY_AGAIN, SETTINGS_FILE, TEMPLATE_FILE

Message = Mapping[str, Any]

_ROLES = frozenset({"system", "user", "assistant", "tool", "developer", "function", "ipython"})
_OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing; the first is the standard one

_SHORT_TAIL, _MOST_TAILS = 64, 1024  # characters; texts

_CONTROL_SHAPE = re.compile(r"<\|\w+\|>")  # of the ready templates


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: what the template gave.
        controls: places of the control tokens that the template wrote: (start, end) in characters, in order.
        generated: what is inside of `{% generation %}`, which the model itself writes: (start, end) in characters.
    """

    text: str
    controls: tuple[tuple[int, int], ...]
    generated: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Prefix:
    """The first messages of a conversation; `asks` ends them with the beginning of an answer."""

    count: int
    asks: bool


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A rendered conversation as ids.

    Attributes:
        ids: of the whole text.
        controls: places of the template's control tokens among the ids; None if one of them has no id of its own.
    """

    ids: list[int]
    controls: list[int] | None


class ChatTemplate:
    """A template for one tokenizer. `source` is its text, `name` names it in errors."""

    def __init__(self, source: str, *, tokenizer: Tokenizer, name: str):
        self.source, self.name, self._tokenizer = source, name, tokenizer
        named = {kind: getattr(tokenizer, f"{kind}_id") for kind in ("bos", "eos", "unk", "pad")}
        self._named = {f"{kind}_token": tokenizer.id_to_piece(i) for kind, i in named.items() if i is not None}
        longest_first = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._borders = frozenset(border for token in longest_first for border in borders_of(token))
        self._longest = len(longest_first[0]) if longest_first else 0
        self._tails: dict[tuple[str, tuple[tuple[int, int], ...]], list[int]] = {}  # headers, which texts share
        self._special_ids = frozenset(tokenizer.special_tokens.values()) - {tokenizer.unk_id}
        described = self._ask({})
        self.variables = frozenset(described["variables"]) - _OWN_VARIABLES - self._named.keys()
        self._spelled = frozenset(described["spelled"])
        # What the template's logic looks for in a text, such as "</think>"; but no part of a control token.
        logic = [s for s in self._spelled if self._borders & set(s) and not self._control.search(s)]
        logic = [s for s in logic if not any(s in token for token in longest_first)]
        self._logic = re.compile("|".join(map(re.escape, sorted(logic, key=len, reverse=True))) or "(?!)")

    @classmethod
    def named(cls, template: str, *, tokenizer: Tokenizer, directory: Path) -> "ChatTemplate | None":
        """The template that a config names.

        Args:
            template: of `READY`, or the path of a `.jinja` file; empty for that of the tokenizer's directory.
            tokenizer: for whose control tokens it is.
            directory: of the tokenizer.

        Returns:
            None where the directory has none.

        Raises:
            UserError: there is no such template, or it cannot be parsed.
        """
        if not template:
            source = stored_template(directory)
            return None if source is None else cls(source, tokenizer=tokenizer, name=f"{directory}: chat template")
        if template in READY:
            spelled = sorted(set(_CONTROL_SHAPE.findall(READY[template])) - tokenizer.special_tokens.keys())
            if spelled:
                logging.warning(
                    "chat template %s: the tokenizer has no control token %s; it is encoded as text, in pieces",
                    template,
                    ", ".join(spelled),
                )
            return cls(READY[template], tokenizer=tokenizer, name=f"chat template {template}")
        path = Path(template).expanduser()
        if not path.is_file():
            raise UserError(
                f"chat template {template!r}: neither a file nor a name; {nearest(template, READY)} "
                "(empty takes the tokenizer's own)"
            )
        return cls(template_text(path), tokenizer=tokenizer, name=str(path))

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Rendered:
        """The text of a conversation.

        Args:
            messages: each with `role` and, as a rule, `content`; values are what JSON can hold. A role that is no known
                one is text like any other.
            add_generation_prompt: ends with the beginning of an answer.
            tools: JSON schemas of functions.
            documents: for templates that quote documents.
            variables: further ones that the template reads.

        Raises:
            UserError: a message without role, a variable that the template does not read, or a template that refuses
                the messages, fails, reaches for what the sandbox hides, or takes too long.
        """
        _check_messages(messages)
        for name in variables or {}:
            if name not in self.variables:
                raise UserError(f"{self.name}: reads no variable {name!r}; {nearest(name, sorted(self.variables))}")
        guarded = self._request(messages, tools=tools, documents=documents, variables=variables)
        guarded.request["context"]["add_generation_prompt"] = add_generation_prompt
        return self._rendered(self._ask(guarded.request), guarded)

    def render_prefixes(
        self, conversations: Sequence[tuple[Sequence[Message], Sequence[Prefix]]]
    ) -> list[dict[Prefix, Rendered | UserError]]:
        """`render` of prefixes of many conversations at once, which costs a fraction of the time.

        Returns:
            For each conversation its prefixes, as text or as the error that `render` raises.
        """
        found: list[dict[Prefix, Rendered | UserError]] = []
        requests: list[tuple[int, _Guarded]] = []
        for number, (messages, prefixes) in enumerate(conversations):
            try:
                _check_messages(messages)
                guarded = self._request(messages)
            except UserError as error:
                found.append(dict.fromkeys(prefixes, error))
                continue
            guarded.request["prefixes"] = [(prefix.count, prefix.asks) for prefix in prefixes]
            requests.append((number, guarded))
            found.append({})
        for (number, guarded), answer in zip(requests, self._ask_each(requests), strict=True):
            for prefix, one in zip(conversations[number][1], answer, strict=True):
                try:
                    found[number][prefix] = self._rendered(self._checked(one), guarded)
                except UserError as error:
                    found[number][prefix] = error
        return found

    def encode(self, rendered: Rendered) -> list[int]:
        """Ids of a rendered text, without a begin-of-text token beside the template's own.

        Where no message spells a control token, they are those of the tokenizer on the whole text. Otherwise the texts
        between the template's control tokens are encoded one by one.
        """
        return self.encode_placed(rendered).ids

    def encode_placed(self, rendered: Rendered) -> Encoded:
        """`encode`, with the places of the control tokens."""
        tokenizer, text = self._tokenizer, rendered.text
        wanted = [tokenizer.special_tokens[text[start:end]] for start, end in rendered.controls]
        if tuple(match.span() for match in self._control.finditer(text)) == rendered.controls:
            ids = tokenizer.encode(text, specials="parse")
            # A normaliser may make a control token out of characters that only look like it.
            places = [place for place, i in enumerate(ids) if i in self._special_ids]
            known = [i for i in wanted if i != tokenizer.unk_id]
            if [ids[place] for place in places] == known:
                return Encoded(ids, places if len(known) == len(wanted) else None)
        ids, places, at = [], [], 0
        for (start, end), control in zip(rendered.controls, wanted, strict=True):
            ids += tokenizer.encode(text[at:start]) if at < start else []
            places.append(len(ids))
            ids.append(control)
            at = end
        return Encoded(ids + (tokenizer.encode(text[at:]) if at < len(text) else []), places)

    def tokens_before(self, border: int, rendered: Rendered, encoded: Encoded) -> int | None:
        """How many of the ids are those of the text before a border, in characters; None where a token crosses it.

        What precedes the border is encoded as a text of its own, from its last control token on: no token crosses one.
        """
        known = bisect.bisect_right([end for _, end in rendered.controls], border)
        if known and encoded.controls is not None:
            (start, end), first = rendered.controls[known - 1], encoded.controls[known - 1]
            controls: tuple[tuple[int, int], ...] = ((0, end - start),)
        else:
            start, first, controls = 0, 0, rendered.controls[:known]
        tail = rendered.text[start:border]
        ids = self._tails.get((tail, controls))
        if ids is None:
            ids = self.encode(Rendered(tail, controls, ()))
            if len(tail) <= _SHORT_TAIL and len(self._tails) < _MOST_TAILS:
                self._tails[tail, controls] = ids
        return first + len(ids) if encoded.ids[first : first + len(ids)] == ids else None

    def prompt_ids(self, messages: Sequence[Message], **given: Any) -> list[int]:
        """Ids of a conversation up to the beginning of the next answer; arguments and errors as of `render`."""
        return self.encode(self.render(messages, add_generation_prompt=True, **given))

    def end_ids(self) -> tuple[int, ...]:
        """The control token that the template writes behind an answer, which ends one; empty if there is none."""
        try:
            rendered = self.render([{"role": "user", "content": "?"}, {"role": "assistant", "content": "="}])
        except UserError:  # it wants other messages
            return ()
        behind = rendered.text.rfind("=")
        found = [rendered.text[slice(*span)] for span in rendered.controls if span[0] > behind]
        return (self._tokenizer.special_tokens[found[0]],) if found and behind >= 0 else ()

    def _guarded(self, value: Any, stand_ins: StandIns, *, role: bool = False) -> Any:
        """A value for the template, in which no string can become a control token or a part of one."""
        if isinstance(value, str):
            return value if role and value in _ROLES else self._guarded_text(value, stand_ins)
        if isinstance(value, Mapping):
            return {
                self._guarded_text(str(key), stand_ins): self._guarded(item, stand_ins, role=key == "role")
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._guarded(item, stand_ins) for item in value]
        return value if isinstance(value, int | float | None) else f"<{type(value).__name__}>"

    def _guarded_text(self, text: str, stand_ins: StandIns) -> str:
        whole = text.strip()
        short = 0 < len(whole) <= self._longest and whole not in self._spelled
        if short and any(whole in token for token in self._tokenizer.special_tokens):
            return stand_ins.replaced(text, set(text))  # the template could write the rest of the token around it
        if self._borders.isdisjoint(text):
            return text
        kept = 0
        parts = []
        for match in self._logic.finditer(text):
            parts += [stand_ins.replaced(text[kept : match.start()], self._borders), match[0]]
            kept = match.end()
        return "".join([*parts, stand_ins.replaced(text[kept:], self._borders)])

    def _request(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> "_Guarded":
        """What the worker is asked for, without `add_generation_prompt`."""
        given = {
            "messages": [_with_aliases(message) for message in messages],
            "tools": tools,
            "documents": documents,
            **(variables or {}),
        }
        try:
            stand_ins = StandIns(given, taken=self.source)
            guarded = {key: self._guarded(value, stand_ins) for key, value in given.items()}
        except RecursionError:
            raise UserError("messages: nested too deep; give flatter ones") from None
        marks = stand_ins.reserve(), stand_ins.reserve()
        context = {**self._named, **guarded}
        return _Guarded({"context": context, "marks": marks, "stand_ins": stand_ins.meaning}, marks, stand_ins)

    def _rendered(self, answer: Mapping[str, Any], guarded: "_Guarded") -> Rendered:
        text, generated = without_marks(guarded.stand_ins.unescaped(answer["text"]), *guarded.marks)
        controls = tuple(match.span() for match in self._control.finditer(text))
        return Rendered(guarded.stand_ins.restored(text), controls, generated)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._checked(template_process.ask({"template": self.source, **request}))
        except template_process.TemplateKilled:
            raise self._too_long() from None

    def _ask_each(self, requests: Sequence[tuple[int, "_Guarded"]]) -> list[list[dict[str, Any]]]:
        """The answers to requests with prefixes; that which kills the worker is asked for alone."""
        if not requests:
            return []
        batch = {"template": self.source, "batch": [guarded.request for _, guarded in requests]}
        try:
            return template_process.ask(batch)["batch"]
        except template_process.TemplateKilled:
            if len(requests) > 1:
                return [answers for one in requests for answers in self._ask_each([one])]
            return [[{"error": "killed", "message": ""}] * len(requests[0][1].request["prefixes"])]

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        """An answer that is no error; UserError otherwise."""
        if "error" not in answer:
            return answer
        if answer["error"] == "killed":
            raise self._too_long()
        message = " ".join(answer["message"].split())[:300]
        said = {
            "syntax": f"line {answer.get('line')}: {message}; mend the template",
            "security": f"reaches for what templates may not have ({message}); use another template",
            "undefined": f"{message}: a message or a variable that it needs is not given",
            "refused": f"refuses these messages: {message}",
            "failed": f"fails on these messages: {message}",
        }
        raise UserError(f"{self.name}: {said[answer['error']]}")

    def _too_long(self) -> UserError:
        limits = f"{CPU_SECONDS} s of processor time or {MEMORY_BYTES >> 20} MiB"
        return UserError(f"{self.name}: takes more than {limits}; does it loop for ever? Mend it")


def _check_messages(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f"message {number}: expected an object with 'role' and 'content'")
    if not messages:
        raise UserError("no messages: give at least one with 'role' and 'content'")


def with_text_content(message: Message) -> Message:
    """A message whose content is one text, joined if it is a list of parts; UserError for parts that are no text."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    texts = [text for text in parts if isinstance(text, str)]
    if len(texts) != len(content):
        raise UserError("only parts of type text are served here")
    return {**message, "content": "".join(texts)}


def stated_template(directory: Path) -> Any:
    """What a tokenizer directory says of its template, in `chat_template.jinja` or `tokenizer_config.json`.

    A text, or several with names in one of the forms of transformers; None if it says nothing.
    """
    if (path := Path(directory) / TEMPLATE_FILE).is_file():
        return template_text(path)
    if not (Path(directory) / SETTINGS_FILE).is_file():
        return None
    return read_listed(Path(directory), SETTINGS_FILE, remedy=COPY_AGAIN).get("chat_template")


def stored_template(directory: Path) -> str | None:
    """The text of the template of a tokenizer directory; None if it has none.

    Of several named ones, that which is called "default". UserError for another form.
    """
    found = stated_template(directory)
    if isinstance(found, list) and all(isinstance(item, dict) for item in found):
        found = {item.get("name"): item.get("template") for item in found}
    path = Path(directory) / SETTINGS_FILE
    if isinstance(found, dict):
        if "default" not in found:
            raise UserError(f"{path}: several chat templates and none is called 'default'; give one as a .jinja file")
        found = found["default"]
    if found is not None and not isinstance(found, str):
        raise UserError(f"{path}: chat_template is no text; expected a Jinja template")
    return found


class _Guarded(NamedTuple):
    """A request in which no string of a message can become a control token, and what its answer is read with."""

    request: dict[str, Any]
    marks: tuple[str, str]
    stand_ins: StandIns


def _with_aliases(message: Message) -> dict[str, Any]:
    """A message without empty keys, and with its reasoning under the names that templates read."""
    kept = {str(key): value for key, value in message.items() if value is not None}
    reasoning = next((kept[key] for key in _REASONING if key in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}


def template_text(path: Path) -> str:
    """The text of a `.jinja` file; UserError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; expected a Jinja template") from None
