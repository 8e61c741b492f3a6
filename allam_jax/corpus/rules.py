"""Rules of the config: a document is dropped when the comparison of a tag with a threshold is true."""

import operator
from collections.abc import Callable, Mapping

from allam_jax.corpus.fasttext_classifier import keeps
from allam_jax.corpus.settings import RuleSettings

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
PARETO = "pareto"

Rules = Mapping[str, RuleSettings]  # name -> rule


def drops(rule: RuleSettings, value: float | None, *, key: str) -> bool:
    """Whether the rule drops a document with this value of the tag. None is never dropped. `key` is the document's id.

    `pareto` draws as GPT-3 does (Brown et al. 2020, appendix A): it keeps a document if a number from the Pareto
    distribution is greater than 1 - tag. The threshold is the distribution's shape (9 in GPT-3). The number is drawn by
    a hash of the id, so a second run keeps the same documents.
    """
    if value is None:
        return False
    if rule.drop == PARETO:
        return not keeps(key, value, alpha=rule.threshold)
    return _COMPARISONS[rule.drop](value, rule.threshold)


def failed(rules: Rules, tags: Mapping[str, float | None], *, key: str) -> list[str]:
    """The names of the rules that drop a document with these tags."""
    return [name for name, rule in rules.items() if drops(rule, tags[rule.tag], key=key)]


def describe(rule: RuleSettings) -> str:
    """What the rule does, in a few words."""
    if rule.drop == PARETO:
        return f"sample by {rule.tag}, Pareto({rule.threshold:g})"
    return f"drop {rule.tag} {rule.drop} {rule.threshold:g}"
