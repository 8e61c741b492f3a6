"""Inputs of a config file: a few plain values from which it makes all others.

    class Inputs(Section):
        '''What the recipe is made of.'''

        texts: str = setting("", "files of the language")

    INPUTS = {"full": Inputs(), "smoke": Inputs(texts="...")}

    def get_config(arg: str = "full") -> ConfigDict:
        variant, inputs = recipe_inputs.read(INPUTS, arg)

absl sets `--config.KEY=VALUE` only after the config exists. So for such a file run.py moves the values of inputs into
the config's argument: `--config FILE:smoke --config.texts=a.txt` becomes `--config FILE:smoke?texts=a.txt`.
"""

import ast
import dataclasses
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

from allam_jax.errors import UserError, nearest
from allam_jax.settings import BadSetting, Section, fields_of

_Inputs = TypeVar("_Inputs", bound=Section)
_INPUT = re.compile(r"--config\.(\w+)=(.*)", re.DOTALL)
_OF_ANY_RECIPE = ("stage", "stages", "task")


def read(variants: Mapping[str, _Inputs], arg: str) -> tuple[str, _Inputs]:
    """The name of the variant and its inputs, with what the argument `VARIANT?KEY=VALUE&...` says of them.

    UserError for an unknown variant or key, and for a value that cannot be used.
    """
    name, _, query = arg.partition("?")
    name = name or next(iter(variants))
    if name not in variants:
        raise UserError(f"--config: no variant {name!r}; {nearest(name, variants)}")
    kinds = {field.name: kind for field, kind in fields_of(type(variants[name]))}
    given: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in kinds:
            raise UserError(f"config.{key}: no such input; {nearest(key, kinds)}")
        given[key] = value if kinds[key] is str else _literal(value)
    try:
        return name, dataclasses.replace(variants[name], **given)
    except BadSetting as error:
        raise UserError(str(error)) from None


def move(argv: list[str]) -> list[str]:
    """The arguments, with the inputs of the config file moved into the file's argument."""
    flags = _joined(argv)
    configs = [arg for arg in flags if arg.startswith("--config=")]
    inputs = [match for match in map(_INPUT.fullmatch, flags) if match and match[1] not in _OF_ANY_RECIPE]
    if not configs or not inputs:
        return argv
    file, _, arg = configs[-1].removeprefix("--config=").partition(":")
    variants = _inputs_of(Path(file))
    if not variants:
        return argv
    keys = [field.name for field, _ in fields_of(type(next(iter(variants.values()))))]
    for match in inputs:
        if match[1] not in keys:
            raise UserError(f"--config.{match[1]}: {file} has no such input; {nearest(match[1], keys)}")
    name, _, query = arg.partition("?")
    values = dict(parse_qsl(query, keep_blank_values=True)) | {match[1]: match[2] for match in inputs}
    moved = {configs[-1]: f"--config={file}:{name}?{urlencode(values)}"} | {match[0]: "" for match in inputs}
    return [new for new in (moved.get(flag, flag) for flag in flags) if new]


def _joined(argv: list[str]) -> list[str]:
    """The arguments, with `--config` and `--config.KEY` in the form `--name=value`."""
    found: list[str] = []
    rest = iter(argv)
    for arg in rest:
        if match := re.fullmatch(r"--?(config(?:\.\w+)?)(=.*)?", arg, re.DOTALL):
            found.append(f"--{match[1]}{match[2] or '=' + next(rest, '')}")
        else:
            found.append(arg)
    return found


def _inputs_of(file: Path) -> Mapping[str, Section]:
    """`INPUTS` of a config file; empty where it has none, or cannot be run (which the reading of the config tells)."""
    spec = importlib.util.spec_from_file_location("_config_file", file)
    if spec is None or spec.loader is None or not file.is_file():
        return {}
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their types up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit):
        return {}
    finally:
        del sys.modules[spec.name]
    return getattr(module, "INPUTS", {})


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # the section says what it expected
