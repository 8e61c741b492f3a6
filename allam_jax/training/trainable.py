"""Which parameters a run trains: all, some by name, or only the rows of the embedding and head from one id on.

`select` takes the trained arrays out of the parameters, and `insert` puts them back. Gradients, moments and updates
exist for what is selected alone.
"""

import dataclasses
from typing import Any

import jax

from allam_jax.errors import UserError, nearest
from allam_jax.model.llama import LORA, Params
from allam_jax.parallel.sharding import path_name

_ROWS = {"embedding/table": 0, "head/kernel": 1}  # parameter -> its axis of ids
_FIXED = "factor"  # of an adapter


@dataclasses.dataclass(frozen=True)
class Trainable:
    """Which parameters are trained.

    Attributes:
        names: a parameter with one of these on its path is trained; empty: all, or the adapters where there are any.
        rows_from: of the embedding and the head only ids from here on are trained.
    """

    names: tuple[str, ...] = ()
    rows_from: int = 0

    def select(self, params: Params) -> Params:
        """The trained arrays as a nested dict; of the embedding and head the trained rows. The rest is left out."""
        if self == Trainable() and LORA not in params:
            return params
        names = {name for path, _ in jax.tree_util.tree_leaves_with_path(params) for name in path_name(path).split("/")}
        for name in self.names:
            if name not in names:
                raise UserError(f"config.trainable.parameters: no parameter is called {name!r}; {nearest(name, names)}")
        return self._selected(params, params)

    def insert(self, params: Params, trained: Params) -> Params:
        """The parameters with what `select` gives replaced by `trained`."""
        if trained.keys() == params.keys() and self == Trainable() and LORA not in params:
            return trained
        return self._inserted(params, trained)

    def _selected(self, tree: Params, whole: Params, *path: str) -> Params:
        found: Params = {}
        for name, value in tree.items():
            place = (*path, name)
            if isinstance(value, dict):
                if inner := self._selected(value, whole, *place):
                    found[name] = inner
            elif self._is_trained(place, has_adapters=LORA in whole):
                found[name] = self._rows(place, value)
        return found

    def _inserted(self, params: Params, trained: Params, *path: str) -> Params:
        found = dict(params)
        for name, value in trained.items():
            place, old = (*path, name), params[name]
            if isinstance(value, dict):
                found[name] = self._inserted(old, value, *place)
            elif value.shape == old.shape:
                found[name] = value
            else:
                start = [0] * old.ndim
                start[_ROWS["/".join(place)]] = self.rows_from
                found[name] = jax.lax.dynamic_update_slice(old, value, start)
        return found

    def _is_trained(self, place: tuple[str, ...], *, has_adapters: bool) -> bool:
        if place[0] == LORA:
            return place[-1] != _FIXED
        return not set(self.names).isdisjoint(place) if self.names else not has_adapters

    def _rows(self, place: tuple[str, ...], value: Any) -> Any:
        axis = _ROWS.get("/".join(place))
        if axis is None or not self.rows_from:
            return value
        if self.rows_from >= value.shape[axis]:
            raise UserError(
                f"config.trainable.rows_from = {self.rows_from}: the model has only {value.shape[axis]} rows"
            )
        return jax.lax.slice_in_dim(value, self.rows_from, None, axis=axis)
