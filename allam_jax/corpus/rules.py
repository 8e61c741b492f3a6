"""Rules of the config: a document is dropped when the comparison of a tag with a threshold is true."""

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence

from allam_jax.corpus.fasttext_classifier import keeps
from allam_jax.corpus.tags import check_names
from allam_jax.errors import UserError

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
PARETO = "pareto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One reason to drop a document.

    Attributes:
        name: shown in the report.
        tag: the tag that the rule reads.
        drop: a comparison, one of < <= > >= ==: drops the document where `tag DROP threshold` is true. Or `pareto`:
            keeps the document with the probability of GPT-3 (Brown et al. 2020, appendix A), that of `Pareto(threshold)
            > 1 - tag`; a hash of the document's id decides.
        threshold: in the unit of the tag; for `pareto` the shape of the distribution, 9 in GPT-3.
    """

    name: str
    tag: str
    drop: str
    threshold: float

    def drops(self, value: float | None, *, key: str) -> bool:
        """Whether the rule drops a document with this value of the tag: never for None. `key` is the document's id."""
        if value is None:
            return False
        if self.drop == PARETO:
            return not keeps(key, value, alpha=self.threshold)
        return _COMPARISONS[self.drop](value, self.threshold)

    def __str__(self) -> str:
        if self.drop == PARETO:
            return f"sample by {self.tag}, Pareto({self.threshold:g})"
        return f"drop {self.tag} {self.drop} {self.threshold:g}"


def read_rules(table: Mapping[str, Mapping[str, object]], *, key: str) -> tuple[Rule, ...]:
    """The rules of one set of the config, in the order of their names.

    Args:
        table: name -> {tag, drop, threshold}.
        key: the set's key in the config, for errors.

    Raises:
        UserError: a tag or a comparison is unknown.
    """
    rules = []
    for name, values in sorted(table.items()):
        rule = Rule(
            name=name,
            tag=str(values["tag"]),
            drop=str(values["drop"]),
            threshold=float(values["threshold"]),  # type: ignore[arg-type]
        )
        check_names([rule.tag], key=f"{key}.{name}.tag")
        if rule.drop != PARETO and rule.drop not in _COMPARISONS:
            expected = ", ".join((*_COMPARISONS, PARETO))
            raise UserError(f"config.{key}.{name}.drop = {rule.drop!r}: expected one of {expected}")
        rules.append(rule)
    return tuple(rules)


def failed(rules: Sequence[Rule], tags: Mapping[str, float | None], *, key: str) -> list[Rule]:
    """The rules that drop a document with these tags."""
    return [rule for rule in rules if rule.drops(tags[rule.tag], key=key)]
