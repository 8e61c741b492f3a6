"""Figures of a sweep: what is drawn is the mean and the spread, with axes, units and a legend that covers nothing."""

import dataclasses

import matplotlib
import numpy as np
import pytest

from allam_jax.ablation.figures import Against, Curves, Dots, Together
from allam_jax.ablation.measures import curve, metric
from allam_jax.ablation.outcomes import Outcome, aligned_curves, summarise

METHODS = ("random", "subword_mean", "mean_all")
STEPS = np.array([0, 5, 10, 20, 40])
CURVES = [curve(key, key=key, title=title, unit="bits/byte") for key, title in (("en", "English"), ("ar", "Arabic"))]
NUMBERS = [metric("bits", key="x", title="Arabic", unit="bits/byte"), metric("norm", key="x", title="Gradient norm")]


@pytest.fixture
def outcomes():
    rng = np.random.default_rng(0)
    return [
        Outcome(
            run=f"{method}-{share}-{seed}",
            labels={"method": method, "share": share, "seed": seed},
            values={"bits": 2 - index / 5 + 0.05 * rng.normal(), "norm": rng.uniform(1, 2)},
            curves={m.name: (STEPS, 2 + np.exp(-STEPS / 9) + index / 9 + 0.02 * rng.normal(size=5)) for m in CURVES},
            seconds=1.0,
        )
        for index, method in enumerate(METHODS)
        for share in (0, 55, 100)
        for seed in range(3)
    ]


def bands(ax):
    """Lower and upper edge of each shaded band, at the x of its points."""
    edges = []
    for collection in ax.collections:
        points = collection.get_paths()[0].vertices
        edges.append([[sorted(points[points[:, 0] == x][:, 1])[i] for x in np.unique(points[:, 0])] for i in (0, -1)])
    return edges


def check_readable(figure, *, legend):
    figure.canvas.draw()
    for ax in figure.axes:
        assert ax.get_ylabel() or ax.get_subplotspec().colspan.start or not ax.get_title()
    (found,) = figure.legends
    assert [text.get_text() for text in found.get_texts()] == legend
    box = found.get_window_extent()
    for ax in figure.axes:
        assert not box.overlaps(ax.get_window_extent())
    colours = [line.get_color() for line in figure.axes[0].lines if line.get_label()[0] != "_"]
    assert len(set(colours)) == len(legend)
    assert "standard deviation over seeds" in figure.get_supxlabel()


def test_curves_have_bands_of_one_standard_deviation(outcomes, tmp_path, drawn):
    some = [outcome for outcome in outcomes if outcome.labels["share"] == 55]
    figure = Curves(
        name="c", measures=("en", "ar"), by=("method",), caption="", reference={"method": "random"}, log_steps=False
    )
    figure.draw(some, CURVES, tmp_path / "c.png")
    (picture,) = drawn
    check_readable(picture, legend=list(METHODS))
    english = picture.axes[0]
    assert (english.get_title(), english.get_ylabel()) == ("English", "bits/byte")
    assert picture.axes[-1].get_xlabel() == "Optimizer step"
    for index, method in enumerate(METHODS):
        values = np.array([o.curves["en"][1] for o in some if o.labels["method"] == method])
        mean, std = values.mean(axis=0), values.std(axis=0, ddof=1)
        np.testing.assert_allclose(english.lines[index].get_ydata(), mean)
        low, high = bands(english)[index]
        np.testing.assert_allclose(low, mean - std)
        np.testing.assert_allclose(high, mean + std)
    # Below: the difference to the reference, seed by seed.
    below = picture.axes[2]
    assert below.get_ylabel() == "Difference to\nrandom (bits/byte)\nlog beyond ±0.01"
    ours, theirs = (
        np.array([o.curves["en"][1] for o in some if o.labels["method"] == m]) for m in ("mean_all", "random")
    )
    np.testing.assert_allclose(below.lines[2].get_ydata(), (ours - theirs).mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(bands(below)[2][1], (ours - theirs).mean(axis=0) + (ours - theirs).std(axis=0, ddof=1))


@pytest.mark.parametrize(("lowest", "bottom_is_zero"), [(0.1, True), (-0.1, False)])
def test_a_wide_spread_does_not_take_what_is_positive_below_zero(lowest, bottom_is_zero, tmp_path, drawn):
    curves = [np.array([5.0, lowest, 5.0]), np.array([5.0, 9.0, 5.0])]
    some = [Outcome(run=str(i), labels={"method": "a", "seed": i}, values={}, curves={"en": (STEPS[:3], ys)}, seconds=0)
            for i, ys in enumerate(curves)]  # fmt: skip
    if lowest < 0:
        some = [dataclasses.replace(o, curves={"en": (STEPS[:3], o.curves["en"][1] - 6)}) for o in some]
    figure = Curves(name="c", measures=("en",), by=("method",), caption="", log_steps=False)
    figure.draw(some, CURVES[:1], tmp_path / "c.png")
    (ax,) = drawn[0].axes
    assert (ax.get_ylim()[0] == 0) == bottom_is_zero
    assert min(bands(ax)[0][0]) == pytest.approx(np.mean([c.curves["en"][1][1] for c in some]) - np.std(
        [c.curves["en"][1][1] for c in some], ddof=1))  # fmt: skip


def test_a_long_curve_is_shown_as_its_running_mean(outcomes, tmp_path, drawn):
    steps = np.arange(200)
    some = [
        Outcome(run=o.run, labels=o.labels, values={}, curves={"en": (steps, (-1.0) ** steps)}, seconds=0)
        for o in outcomes
    ]
    Curves(name="c", measures=("en",), by=("method",), caption="", log_steps=False).draw(
        some, CURVES[:1], tmp_path / "c.png"
    )
    (ax,) = drawn[0].axes
    assert ax.get_title() == "English (running mean of 5)"
    assert np.abs(ax.lines[0].get_ydata()[5:-5]).max() < 0.25


def test_curves_from_a_step_on(outcomes, tmp_path, drawn):
    whole, cut = (
        Curves(name="c", measures=("en",), by=("method",), caption="", log_steps=False, from_step=step)
        for step in (0, 15)
    )
    for figure in (whole, cut):
        figure.draw(outcomes, CURVES[:1], tmp_path / "c.png")
    for line, part in zip(*(picture.axes[0].lines for picture in drawn), strict=True):
        steps, values = line.get_data()
        assert steps.min() < 15 < steps.max()
        np.testing.assert_array_equal(part.get_xdata(), steps[steps >= 15])
        np.testing.assert_array_equal(part.get_ydata(), values[steps >= 15])


def test_numbers_against_a_setting(outcomes, tmp_path, drawn):
    figure = Against(
        name="a", measures=("bits", "norm"), by=("method",), x="share", x_label="English share (%)", caption=""
    )
    figure.draw(outcomes, NUMBERS, tmp_path / "a.png")
    (picture,) = drawn
    check_readable(picture, legend=list(METHODS))
    bits, norm = picture.axes
    assert (bits.get_ylabel(), norm.get_ylabel(), bits.get_xlabel()) == (
        "bits/byte",
        "Gradient norm",
        "English share (%)",
    )
    line = next(line for line in bits.lines if line.get_label() == "mean_all")
    np.testing.assert_array_equal(line.get_xdata(), [0, 55, 100])
    for x, y in zip(*line.get_data(), strict=True):
        values = [o.values["bits"] for o in outcomes if o.labels["method"] == "mean_all" and o.labels["share"] == x]
        np.testing.assert_allclose(y, np.mean(values))


def test_differences_to_a_setting_are_paired_by_seed(outcomes, tmp_path, drawn):
    some = [outcome for outcome in outcomes if outcome.labels["method"] == "mean_all"]
    reference = {"share": 55}
    figure = Against(
        name="a", measures=("bits",), x="share", x_label="English share (%)", caption="", reference=reference
    )
    figure.draw(some, NUMBERS[:1], tmp_path / "a.png")
    above, below = drawn[0].axes
    assert (above.get_xlabel(), below.get_xlabel()) == ("", "English share (%)")
    assert below.get_ylabel() == "Difference to\nshare 55 (bits/byte)\nlog beyond ±0.01"
    values = {(o.labels["share"], o.labels["seed"]): o.values["bits"] for o in some}
    seeds = {seed for _, seed in values}
    for x, y in zip(*below.lines[0].get_data(), strict=True):
        np.testing.assert_allclose(y, np.mean([values[x, seed] - values[55, seed] for seed in seeds]), atol=1e-12)


def test_dots_show_mean_spread_and_every_seed(outcomes, tmp_path, drawn):
    some = [outcome for outcome in outcomes if outcome.labels["share"] == 0]
    Dots(name="d", measures=("bits", "norm"), by=("method",), caption="").draw(some, NUMBERS, tmp_path / "d.png")
    bits = drawn[0].axes[0]
    assert [label.get_text() for label in bits.get_yticklabels()] == list(METHODS)
    assert bits.get_xlabel() == "bits/byte"
    for row, method in enumerate(METHODS):
        values = [o.values["bits"] for o in some if o.labels["method"] == method]
        marks = [line for line in bits.lines if len(line.get_ydata()) and set(line.get_ydata()) == {row}]
        assert any(np.allclose(line.get_xdata(), np.mean(values)) for line in marks if len(line.get_xdata()) == 1)
        assert any(
            np.allclose(sorted(line.get_xdata()), sorted(values)) for line in marks if len(line.get_xdata()) == 3
        )
        bar = bits.containers[row][2][0].get_segments()[0]
        np.testing.assert_allclose(bar[:, 0], np.mean(values) + np.array([-1, 1]) * np.std(values, ddof=1))


def test_the_same_data_give_the_same_picture(outcomes, tmp_path):
    matplotlib.use("Agg")
    figure = Dots(name="d", measures=("bits",), by=("method",), caption="")
    for name in ("one", "two"):
        figure.draw(outcomes, NUMBERS[:1], tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_curves_are_aligned_at_the_steps_that_all_runs_have():
    runs = [
        Outcome(run=str(i), labels={"seed": i}, values={}, curves={"x": (np.array(steps), np.array(values))}, seconds=0)
        for i, (steps, values) in enumerate([([0, 1, 2], [1.0, 2.0, 3.0]), ([0, 2, 4], [3.0, 5.0, 9.0])])
    ]
    steps, values = aligned_curves(runs, "x")
    assert (steps.tolist(), values.tolist()) == ([0, 2], [[1.0, 3.0], [3.0, 5.0]])


def test_summaries():
    summary = summarise([1.0, 2.0, 4.0])
    assert summary.mean == pytest.approx(7 / 3)
    assert summary.std == pytest.approx(np.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2))
    assert np.isnan(summarise([1.0]).std)
    assert summarise([]).count == 0


def test_curves_of_some_arms_only(outcomes, tmp_path, drawn):
    some = [outcome for outcome in outcomes if outcome.labels["share"] == 55]
    figure = Curves(name="c", measures=("en",), by=("method",), caption="", only=("random", "mean_all"))
    figure.draw(some, CURVES[:1], tmp_path / "c.png")
    check_readable(drawn[0], legend=["random", "mean_all"])


def test_measures_together_share_a_panel(outcomes, tmp_path, drawn):
    random = [outcome for outcome in outcomes if outcome.labels["method"] == "random"]
    figure = Together(
        name="t",
        panels={"One": ("bits", "norm"), "Two": ("norm", "bits")},
        lines=("first", "second"),
        x="share",
        x_label="Share (%)",
        caption="",
    )
    assert (figure.measure_names, figure.axis_names) == (("bits", "norm", "norm", "bits"), ("share",))
    figure.draw(random, [*NUMBERS, *NUMBERS[::-1]], tmp_path / "t.png")
    (picture,) = drawn
    check_readable(picture, legend=["first", "second"])
    one, two = picture.axes
    assert (one.get_title(), two.get_title(), one.get_ylabel(), one.get_xlabel()) == (
        *("One", "Two", "bits/byte", "Share (%)"),
    )
    for share, mean, low, high in zip((0, 55, 100), one.lines[0].get_ydata(), *bands(one)[0], strict=True):
        values = [run.values["bits"] for run in random if run.labels["share"] == share]
        np.testing.assert_allclose(mean, np.mean(values))
        np.testing.assert_allclose((high - low) / 2, np.std(values, ddof=1))
    np.testing.assert_array_equal(one.lines[0].get_ydata(), two.lines[1].get_ydata())


def test_the_band_of_a_smoothed_curve_is_the_deviation_of_the_running_means(tmp_path, drawn):
    rng = np.random.default_rng(1)
    steps, values = np.arange(200), 2 + rng.normal(size=(3, 200))
    some = [
        Outcome(run=str(seed), labels={"method": "a", "seed": seed}, values={}, curves={"en": (steps, row)}, seconds=0)
        for seed, row in enumerate(values)
    ]
    Curves(name="c", measures=("en",), by=("method",), caption="", log_steps=False).draw(
        some, CURVES[:1], tmp_path / "c.png"
    )
    low, high = bands(drawn[0].axes[0])[0]
    means = [values[:, i - 2 : i + 3].mean(axis=1) for i in range(2, 198)]  # windows of 5 values
    np.testing.assert_allclose(np.subtract(high, low)[2:-2] / 2, np.std(means, axis=1, ddof=1))


def test_all_panels_share_one_step_axis_and_its_label_says_what_it_is(outcomes, tmp_path, drawn):
    every = np.arange(1, 41)
    some = [
        dataclasses.replace(o, curves={**o.curves, "loss": (every, 5.0 / every)})
        for o in outcomes
        if o.labels["share"] == 55
    ]
    measures = [CURVES[0], curve("loss", key="loss", title="Loss", unit="nats")]
    Curves(name="c", measures=("en", "loss"), by=("method",), caption="").draw(some, measures, tmp_path / "c.png")
    first, second = drawn[0].axes
    assert first.get_xlim() == second.get_xlim()
    np.testing.assert_allclose(
        first.transData.transform([(step, 2.0) for step in STEPS])[:, 0] - first.bbox.x0,
        second.transData.transform([(step, 2.0) for step in STEPS])[:, 0] - second.bbox.x0,
        atol=1.0,
    )
    assert first.get_xlabel() == second.get_xlabel() == "Optimizer step (log scale from 5)"


def test_a_legend_has_a_title_and_reads_from_left_to_right(outcomes, tmp_path, drawn):
    by = ("method", "share")
    Curves(name="c", measures=("en",), by=by, caption="").draw(outcomes, CURVES[:1], tmp_path / "c.png")
    (found,) = drawn[0].legends
    assert found.get_title().get_text() == "method, share"
    drawn[0].canvas.draw()
    texts = {text.get_text(): text.get_window_extent() for text in found.get_texts()}
    read = sorted(texts, key=lambda name: (-round(texts[name].y0), texts[name].x0))
    assert read == [f"{method}, {share}" for method in METHODS for share in (0, 55, 100)]


def test_amounts_are_shown_from_zero(outcomes, tmp_path, drawn):
    figure = Against(name="a", measures=("bits",), x="share", x_label="Share (%)", caption="", from_zero=True)
    figure.draw(outcomes, NUMBERS[:1], tmp_path / "a.png")
    assert drawn[0].axes[0].get_ylim()[0] == 0
