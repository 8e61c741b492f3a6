"""Rows mapped through a backend, as the tests of backends want them."""

from allam_jax.generation.over_rows import over_rows
from allam_jax.generation.rows import Prompt


def rows_of(count, *, bad=()):
    return [Prompt(n, f"row {n}", {"id": f"i{n}"}, "a row not JSON" if n in bad else "") for n in range(count)]


def mapped(rows, backend, directory, **given):
    settings = {"identity": {"input": "x"}, "shard_rows": 10, "max_error_share": 0.5}
    return over_rows(rows, total=len(rows), backend=backend, directory=directory, **(settings | given))
