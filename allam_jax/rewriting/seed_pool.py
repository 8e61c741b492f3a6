"""The pool of documents that people or an expert model rewrite, drawn by strata of domain and language.

The draw of a document follows from the seed and its text alone. So the order of the input, and documents that come or
go elsewhere, change nothing, and a text that is there twice is drawn once.
"""

import array
import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from allam_jax.corpus.document import Document
from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError
from allam_jax.files import unit_hash
from allam_jax.rewriting.settings import SeedPoolSettings

Stratum = tuple[str, str]  # domain, language
_FIELDS = ("id", "source", "language")


@dataclasses.dataclass
class _Candidates:
    """The documents of a stratum: the draw of each, and where it lies. 24 bytes a document."""

    draws: array.array = dataclasses.field(default_factory=lambda: array.array("d"))
    datasets: array.array = dataclasses.field(default_factory=lambda: array.array("q"))
    indices: array.array = dataclasses.field(default_factory=lambda: array.array("q"))

    def places(self) -> list[tuple[int, int]]:
        """Number of the dataset and index of each document, in the order of their draws, every text once."""
        _, first = np.unique(np.array(self.draws), return_index=True)
        return [(self.datasets[at], self.indices[at]) for at in first]


class SeedPool:
    """A pool that has been drawn.

    Attributes:
        available: stratum -> documents of the input.
        drawn: stratum -> documents of the pool.
    """

    def __init__(self, sources: Mapping[str, DocumentSource], settings: SeedPoolSettings, *, seed: int):
        """Reads every document once. UserError where a dataset has not the fields that are needed."""
        self._sources = list(sources.values())
        candidates = collections.defaultdict[Stratum, _Candidates](_Candidates)
        for number, (name, source) in enumerate(sources.items()):
            needed = {*_FIELDS, settings.domain}
            if missing := sorted(needed - source.fields(0).keys()) if len(source) else []:
                raise UserError(f"config.seed_pool.inputs.{name}: its documents have no {' and no '.join(missing)}; "
                                "write them with the corpus task, or name another seed_pool.domain")  # fmt: skip
            for index in range(len(source)):
                fields = source.fields(index)
                if settings.least_bytes <= len(fields["text"].encode()) <= settings.most_bytes:
                    found = candidates[fields[settings.domain], fields["language"]]
                    found.draws.append(unit_hash(f"{seed}:{fields['text']}"))
                    found.datasets.append(number)
                    found.indices.append(index)
        places = {stratum: found.places() for stratum, found in sorted(candidates.items())}
        self.available = {stratum: len(found) for stratum, found in places.items()}
        self.drawn = quotas(self.available, total=settings.documents, balance=settings.balance)
        self._places = {stratum: found[: self.drawn[stratum]] for stratum, found in places.items()}

    def documents(self) -> Iterator[Document]:
        """The pool, in an order in which every beginning of it has the strata in nearly the shares of the whole."""
        placed = [
            ((rank + 0.5) / len(places), stratum, place)
            for stratum, places in self._places.items()
            for rank, place in enumerate(places)
        ]
        for _, _, (number, index) in sorted(placed):
            fields = self._sources[number].fields(index)
            yield Document(text=fields["text"], id=fields["id"], source=fields["source"], language=fields["language"])


def quotas(sizes: Mapping[Stratum, int], *, total: int, balance: float) -> dict[Stratum, int]:
    """How many documents each stratum gives: a share of `total` by size ** balance, and never more than it has.

    What a small stratum cannot give, the others do. Whole numbers come about by the largest remainders.
    """
    found: dict[Stratum, int] = {}
    rest, left = dict(sizes), min(total, sum(sizes.values()))
    while rest:
        scale = left / sum(size**balance for size in rest.values())
        exact = {stratum: scale * size**balance for stratum, size in rest.items()}
        full = {stratum: rest[stratum] for stratum, share in exact.items() if share >= rest[stratum]}
        if not full:
            found |= _whole(exact, total=left)
            break
        found |= full
        left -= sum(full.values())
        rest = {stratum: size for stratum, size in rest.items() if stratum not in full}
    return dict(sorted(found.items()))


def _whole(exact: Mapping[Stratum, float], *, total: int) -> dict[Stratum, int]:
    found = {stratum: int(share) for stratum, share in exact.items()}
    by_remainder: Iterable[Stratum] = sorted(exact, key=lambda stratum: (found[stratum] - exact[stratum], stratum))
    for stratum in list(by_remainder)[: total - sum(found.values())]:
        found[stratum] += 1
    return found
