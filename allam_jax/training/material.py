"""What one kind of training brings to a run: its data, its objective and what is scored on the way."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jax.sharding import Mesh

from allam_jax.data.batch import BatchSource
from allam_jax.settings import Settings
from allam_jax.training.loop import Evaluation, Watcher
from allam_jax.training.objective import Objective, Prepare, unchanged
from allam_jax.training.origin import Origin
from allam_jax.training.run_description import RunDescription, next_token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """What one kind of training brings to a run.

    Attributes:
        open_loader: opens the batches; closed at the end.
        open_evaluations: opens what is scored on the way.
        steps: updates of the run; None: `train.steps`.
        num_sources: that `source_ids` counts; None: those of `config.data`.
        objective: what is minimised.
        prepare: see `Prepare`.
        watchers: see `run_loop`.
        beside_tokenizer: files, by name, that the run keeps with its tokenizer in place of the origin's.
    """

    open_loader: Callable[[], contextlib.AbstractContextManager[BatchSource]]
    open_evaluations: Callable[[], Sequence[Evaluation]]
    steps: int | None = None
    num_sources: int | None = None
    objective: Callable[[RunDescription], Objective] = next_token
    prepare: Prepare = unchanged
    watchers: Sequence[Watcher] = ()
    beside_tokenizer: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    def settings(self, config: Settings) -> Settings:
        """The run's settings, with as many updates as the material has where it says so."""
        if self.steps is None:
            return config
        return Settings(**vars(config) | {"train": dataclasses.replace(config.train, steps=self.steps)})


MaterialOf = Callable[[Settings, Path, Origin, Mesh], Material]
