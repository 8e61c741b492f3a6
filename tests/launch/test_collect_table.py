"""The table of a sweep: a row for each arm, or with many measures a column."""

import statistics

import pytest

from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.measures import metric
from allam_jax.ablation.outcomes import Outcome
from allam_jax.ablation.vary import grid, param, seeds
from allam_jax.launch.collect import table_rows, table_text

RATES = (0.1, 0.25)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.mark.parametrize("count", [2, 8, 9])
def test_every_mean_and_deviation_is_in_the_table_once(count):
    names = [f"m{number}" for number in range(count)]
    experiment = Experiment(
        title="",
        claim="",
        config="",
        vary=grid(param("a.rate", *RATES), seeds(0, 1, 2)),
        measures=tuple(metric(name, key="x", title=f"Measure {name}", unit="nats") for name in names),
    )
    values = {
        (rate, name, seed): 1 + rate * number + 0.01 * seed**2
        for rate in RATES
        for number, name in enumerate(names)
        for seed in range(3)
    }
    outcomes = [
        Outcome(
            run=f"{rate}-{seed}",
            labels={"rate": rate, "seed": seed},
            values={name: values[rate, name, seed] for name in names},
            curves={},
            seconds=1.0,
        )
        for rate in RATES
        for seed in range(3)
    ]
    lines = [cells(line) for line in table_text(experiment, table_rows(experiment, outcomes)).splitlines()]
    if count > 8:
        lines = [list(column) for column in zip(*lines, strict=True)]
        assert lines.pop(0) == ["rate", "---", "seeds", *(f"Measure {name} (nats)" for name in names)]
        for line in lines:
            del line[1]  # the rule below the headings
        seeds_of = {line[0]: line[1] for line in lines}
        shown = {line[0]: line[2:] for line in lines}
        assert seeds_of == {"0.1": "3", "0.25": "3"}
    else:
        assert lines[0] == ["rate", "seeds", *(f"Measure {name} (nats)" for name in names)]
        shown = {f"{float(line[0]):g}": line[2:] for line in lines[2:]}
    assert set(shown) == {"0.1", "0.25"}
    for rate in RATES:
        expected = []
        for name in names:
            three = [values[rate, name, seed] for seed in range(3)]
            expected.append(f"{statistics.mean(three):#.4g} ± {statistics.stdev(three):.2g}")
        assert shown[f"{rate:g}"] == expected
