"""The pool of documents that people or an expert model rewrite, drawn by strata of domain and language.

The draw of a document follows from the seed and its text alone. So the order of the input, and documents that come or
go elsewhere, change nothing, and a text that is there twice is drawn once.
"""

import dataclasses
import heapq
from collections.abc import Iterable, Iterator, Mapping

from allam_jax.corpus.document import Document
from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError
from allam_jax.files import unit_hash
from allam_jax.rewriting.settings import SeedPoolSettings

Stratum = tuple[str, str]  # domain, language
_FIELDS = ("id", "source", "language")


@dataclasses.dataclass
class _Candidates:
    """The documents of a stratum: how many there are, and where those with the first draws lie."""

    documents: int = 0
    places: dict[float, tuple[str, int]] = dataclasses.field(default_factory=dict)  # draw -> dataset, index


class SeedPool:
    """A pool that has been drawn.

    Attributes:
        available: stratum -> documents of the input.
        drawn: stratum -> documents of the pool.
    """

    def __init__(self, sources: Mapping[str, DocumentSource], settings: SeedPoolSettings, *, seed: int):
        """Reads every document once. UserError where a dataset has not the fields that are needed."""
        self._sources, self._most = sources, settings.documents
        candidates: dict[Stratum, _Candidates] = {}
        for name, source in sources.items():
            needed = {*_FIELDS, settings.domain}
            if missing := sorted(needed - source.fields(0).keys()) if len(source) else []:
                raise UserError(f"config.seed_pool.inputs.{name}: its documents have no {' and no '.join(missing)}; "
                                "write them with the corpus task, or name another seed_pool.domain")  # fmt: skip
            for index in range(len(source)):
                fields = source.fields(index)
                if not settings.least_bytes <= len(fields["text"].encode()) <= settings.most_bytes:
                    continue
                stratum = (fields[settings.domain], fields["language"])
                self._add(candidates.setdefault(stratum, _Candidates()), (name, index), f"{seed}:{fields['text']}")
        self.available = {stratum: found.documents for stratum, found in sorted(candidates.items())}
        self.drawn = quotas(self.available, total=self._most, balance=settings.balance)
        self._places = {
            stratum: [place for _, place in heapq.nsmallest(self.drawn[stratum], found.places.items())]
            for stratum, found in candidates.items()
        }

    def documents(self) -> Iterator[Document]:
        """The pool, in an order in which every beginning of it has the strata in nearly the shares of the whole."""
        placed = [
            ((rank + 0.5) / len(places), stratum, place)
            for stratum, places in self._places.items()
            for rank, place in enumerate(places)
        ]
        for _, _, (name, index) in sorted(placed):
            fields = self._sources[name].fields(index)
            yield Document(text=fields["text"], **{field: fields[field] for field in _FIELDS})

    def _add(self, candidates: _Candidates, place: tuple[str, int], key: str) -> None:
        draw = unit_hash(key)
        if draw in candidates.places:  # the same text
            return
        candidates.documents += 1
        candidates.places[draw] = place
        if len(candidates.places) > 2 * self._most:
            candidates.places = dict(heapq.nsmallest(self._most, candidates.places.items()))


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
