"""Rules: a document is dropped when a tag compares with a threshold. Rules are data of the config."""

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
      name: For the report.
      tag: Which tag it looks at.
      drop: The document is dropped where `tag DROP threshold` holds, with DROP one of < <= > >= ==; or `pareto`: it is
        kept with the probability that GPT-3 (Brown et al. 2020, appendix A) keeps a document of this score with,
        that of `Pareto(threshold) > 1 - score`, decided by a hash of its id.
      threshold: In the tag's unit; of `pareto` the shape, 9 in GPT-3.
    """

    name: str
    tag: str
    drop: str
    threshold: float

    def drops(self, value: float | None, *, key: str) -> bool:
        """Whether a document with this value of the tag is dropped; never on None. `key` identifies the document."""
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
      key: Where it stands in the config, for errors.

    Raises:
      UserError: Unknown tag or comparison.
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
    """Those of the rules that drop a document with these tags."""
    return [rule for rule in rules if rule.drops(tags[rule.tag], key=key)]
