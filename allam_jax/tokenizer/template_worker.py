"""A program that renders Jinja templates of others, one JSON line in and one out, in an immutable sandbox.

It is a process of its own, because nothing inside of one interpreter stops a template that counts for ever or doubles
a string: here the kernel does, by processor time and address space (`template_process.py` starts it anew). So that it
starts in a moment, it imports nothing of ours.

Templates get what transformers gives them: `raise_exception`, `strftime_now`, `tojson` without HTML escapes, loop
controls, and `{% generation %}`, which marks what the model itself writes.
"""

import datetime
import functools
import json
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

CPU_SECONDS = 1  # of one template
MEMORY_BYTES = 1 << 30  # of this process
_ENCODERS = "e", "escape", "forceescape", "urlencode"  # filters that give other characters for some


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: the environment's two marks around what is inside."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        start, end = self.environment.generation_marks  # type: ignore[attr-defined]
        return f"{start}{caller()}{end}"


class _Dict:
    """Makes dictionaries, without the other attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(jinja2.utils.Namespace):
    """A namespace that holds no names with an underscore in front, through which one reaches Python itself."""

    def __init__(*args: Any, **kwargs: Any):
        self, *rest = args
        for name in dict(*rest, **kwargs):
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, *rest, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def _raise_exception(message: str) -> str:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise jinja2.exceptions.SecurityError(f"{attribute!r} of a {type(obj).__name__}")


def make_environment() -> _Sandbox:
    """The environment of all templates."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


class Renderer:
    """Answers requests: `{"template"}` describes a template, `{"template", "context", ...}` renders it.

    `{"template", "batch": [{"context", "prefixes": [[count, asks], ...], ...}, ...]}` renders the first `count`
    messages of many contexts: a list of answers for each.
    """

    def __init__(self) -> None:
        self._environment = make_environment()
        self._environment.filters["tojson"] = self._to_json
        for name in _ENCODERS:
            self._environment.filters[name] = functools.partial(self._encoded, self._environment.filters[name])
        self._compiled = functools.lru_cache(64)(self._environment.from_string)
        self._stand_ins: Mapping[str, str] = {}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What the template gives, or `{"error": kind, "message": ..., "line": ...}`."""
        if "batch" not in request:
            return self._answer(request)
        each = [
            [self._prefix(request["template"], one, *prefix) for prefix in one["prefixes"]] for one in request["batch"]
        ]
        return {"batch": each}

    def _prefix(self, template: str, request: Mapping[str, Any], count: int, asks: bool) -> dict[str, Any]:
        context = {**request["context"], "add_generation_prompt": asks}
        context["messages"] = context["messages"][:count]
        return self._answer({**request, "template": template, "context": context})

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        _allow_cpu()
        try:
            if "context" not in request:
                return self._described(request["template"])
            self._stand_ins = request["stand_ins"]
            self._environment.generation_marks = request["marks"]  # type: ignore[attr-defined]
            return {"text": self._compiled(request["template"]).render(request["context"])}
        except jinja2.exceptions.TemplateSyntaxError as error:
            return {"error": "syntax", "message": error.message, "line": error.lineno}
        except jinja2.exceptions.SecurityError as error:
            return {"error": "security", "message": str(error)}
        except jinja2.exceptions.UndefinedError as error:
            return {"error": "undefined", "message": str(error)}
        except jinja2.exceptions.TemplateError as error:
            return {"error": "refused", "message": str(error)}
        except RecursionError:
            return {"error": "failed", "message": "it calls itself without end"}
        except MemoryError:
            return {"error": "failed", "message": f"it needs more than {MEMORY_BYTES >> 20} MiB"}
        except Exception as error:  # a template can make any operation of Python fail
            return {"error": "failed", "message": f"{type(error).__name__}: {error}"}

    def _described(self, source: str) -> dict[str, Any]:
        """The strings and names that the template spells, with which its logic compares; the variables it reads."""
        tree = self._environment.parse(source)
        strings = {node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)}
        names = {node.attr for node in tree.find_all(jinja2.nodes.Getattr)}
        return {
            "spelled": sorted(strings | names),
            "variables": sorted(jinja2.meta.find_undeclared_variables(tree) - self._environment.globals.keys()),
        }

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        encode = functools.partial(
            json.dumps, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        return self._encoded(encode, value, quotes=1)

    def _encoded(self, encode: Callable[[Any], str], value: Any, *, quotes: int = 0) -> str:
        """What an encoder gives, in which a stand-in is encoded as the character that it stands for."""
        text = encode(value)
        found = str(text)
        for stand_in, character in self._stand_ins.items():
            written, meant = (str(encode(one))[quotes : len(encode(one)) - quotes] for one in (stand_in, character))
            found = found.replace(written, stand_in if meant == character else meant)
        return type(text)(found)  # markup stays markup


def _allow_cpu() -> None:
    """Gives the next template its processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS, hard))


def main() -> None:
    """Answers one line at a time until standard input ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    renderer = Renderer()
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(json.dumps(renderer.answer(json.loads(line))).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
