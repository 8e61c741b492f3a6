"""Figures: the data behind them, and that what is drawn lies where the data says."""

import math

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from allam_jax.report import curves, style
from allam_jax.tokenizer.fertility import fertility_bars


def run(steps, *, loss=lambda step: 5.0 / step):
    return [{"step": s, "loss": loss(s), "grad_norm": 1.0 + 1 / s, "learning_rate": 1e-3} for s in range(1, steps + 1)]


CURVES = {
    "subword_mean": {"en": [(0, 1.39), (10, 1.40), (20, 1.37)], "ar": [(0, 2.07), (10, 1.7), (20, 1.45)]},
    "random": {"en": [(0, 1.51), (10, 1.47), (20, 1.38)], "ar": [(0, 1.93), (10, 1.71), (20, 1.46)]},
}
BASE = {"en": 1.368, "ar": 2.206}


def lines(ax):
    return {
        line.get_label(): [(x, pytest.approx(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]
        for line in ax.lines
    }


def test_training_curves_have_three_labelled_panels_with_every_run(tmp_path, drawn):
    curves.training_curves({"base": run(30), "more": run(20)}, tmp_path / "curves.png")
    (figure,) = drawn
    assert [ax.get_ylabel().split(" (")[0] for ax in figure.axes] == ["Training loss", "Gradient norm", "Learning rate"]
    assert "nats/token" in figure.axes[0].get_ylabel()
    assert "step" in figure.axes[-1].get_xlabel()
    assert lines(figure.axes[0])["more"] == [(s, 5.0 / s) for s in range(1, 21)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "more"]


def test_a_long_noisy_run_shows_its_steps_and_their_running_mean(tmp_path, drawn):
    rows = run(400, loss=lambda step: 2.0 + (-1) ** step)
    curves.training_curves({"base": rows}, tmp_path / "curves.png")
    faint, bold = drawn[0].axes[0].lines
    assert set(faint.get_ydata()) == {1.0, 3.0}
    assert np.ptp(bold.get_ydata()[20:-20]) < 0.5
    assert faint.get_alpha() < 0.5
    assert "running mean of 11)" in drawn[0].axes[-1].get_xlabel()


def test_a_run_with_gaps_and_infinities_is_drawn(tmp_path):
    rows = run(100)
    rows[50]["loss"] = math.nan
    rows[51]["grad_norm"] = math.inf
    curves.training_curves(
        {"base": [*rows, {"step": 100, "eval/held_out/en/bits_per_byte": 1.0}]}, tmp_path / "curves.png"
    )
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_bits_per_byte_has_a_panel_for_each_language_and_the_base_as_a_line(tmp_path, drawn):
    curves.bits_per_byte_curves(CURVES, base=BASE, path=tmp_path / "bpb.png")
    (figure,) = drawn
    english, arabic, english_difference, arabic_difference = figure.axes
    assert [english.get_title(), arabic.get_title()] == ["English", "Arabic"]
    assert lines(arabic)["random"] == CURVES["random"]["ar"]
    assert lines(english)["base model"] == [(0, 1.368), (1, 1.368)]
    assert lines(english)["base model"] != lines(arabic)["base model"]
    differences = [line.get_ydata() for line in arabic_difference.lines]
    np.testing.assert_allclose(differences, [[0, 0, 0], [-0.14, 0.01, 0.01]], atol=1e-12)
    assert english_difference.get_ylabel() == "Difference to\nsubword_mean (bits/byte)\nlog beyond ±0.01"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base model", "subword_mean", "random"]


def test_differences_are_drawn_only_where_both_were_evaluated(tmp_path, drawn):
    runs = {"a": {"en": [(0, 2.0), (20, 1.0)]}, "b": {"en": [(0, 3.0), (10, 1.0), (20, 1.5)]}}
    curves.bits_per_byte_curves(runs, base={}, path=tmp_path / "bpb.png")
    second = drawn[0].axes[1].lines[1]
    assert list(zip(second.get_xdata(), second.get_ydata(), strict=True)) == [(0, 1.0), (20, 0.5)]


def test_step_0_and_the_first_steps_are_apart_on_the_page(tmp_path, drawn):
    steps = [0, 5, 10, 20, 40, 100, 200, 400]
    curves.bits_per_byte_curves({"a": {"en": [(s, 1.0) for s in steps]}}, base={}, path=tmp_path / "bpb.png")
    ax = drawn[0].axes[0]
    places = ax.transData.transform([(s, 1.0) for s in steps])[:, 0] / ax.bbox.width
    assert np.all(np.diff(places) > 0.05)
    shown = [label.get_text() for label in ax.get_xticklabels()]
    assert shown[:2] == ["0", "5"]
    assert "400" not in shown or shown.count("400") == 1


@pytest.mark.parametrize("points", [[], [(0, 1.0)], [(40, 1.0)], [(0, 1.0), (1, 1.0)], [(0, math.nan), (3, 1.0)]])
def test_few_points_are_enough(tmp_path, points):
    curves.bits_per_byte_curves({"a": {"en": points}}, base={"en": 1.0}, path=tmp_path / "bpb.png")
    curves.bits_per_byte_curves({"a": {"en": points}, "b": {"en": points}}, base={}, path=tmp_path / "bpb.png")


def test_the_same_data_gives_the_same_bytes_and_leaves_no_settings_behind(tmp_path):
    before = dict(matplotlib.rcParams)
    for name in ("one.png", "two.png"):
        curves.bits_per_byte_curves(CURVES, base=BASE, path=tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert dict(matplotlib.rcParams) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_pictures_are_large_enough_to_print(tmp_path):
    curves.training_curves({"base": run(30)}, tmp_path / "curves.png")
    curves.bits_per_byte_curves(CURVES, base=BASE, path=tmp_path / "bpb.png")
    for name in ("curves.png", "bpb.png"):
        height, width, _ = imread(tmp_path / name).shape
        assert width >= 1200
        assert height >= 600


@pytest.mark.parametrize("width", [1, 3, 9])
def test_running_mean_equals_its_definition(width):
    values = np.random.default_rng(0).normal(size=40)
    values[[5, 6, 7, 39]] = np.nan
    half = width // 2
    expected = []
    for i in range(40):
        window = [v for v in values[max(0, i - half) : i + half + 1] if not np.isnan(v)]
        expected.append(sum(window) / len(window) if window else np.nan)
    np.testing.assert_allclose(style.running_mean(values, width=width), expected)


def test_series_takes_the_rows_that_have_the_metric():
    steps, values = style.series([{"step": 1, "a": 2.0}, {"step": 2}, {"step": 3, "a": None}, {"step": 4, "a": 0}], "a")
    assert (steps.tolist(), values.tolist()) == ([1, 4], [2.0, 0.0])


def test_colours_can_be_told_apart_without_red_or_green():
    # Machado et al. (2009), full deuteranopia, on linear RGB.
    deuteranopia = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    colours = [matplotlib.colors.to_rgb(colour) for colour in style.COLOURS[:4]]
    linear = [
        np.where(np.array(c) <= 0.04045, np.array(c) / 12.92, ((np.array(c) + 0.055) / 1.055) ** 2.4) for c in colours
    ]
    seen = [deuteranopia @ c for c in linear]
    for i in range(len(seen)):
        for j in range(i):
            assert np.linalg.norm(seen[i] - seen[j]) > 0.1


def test_fertility_has_a_bar_of_the_right_height_for_every_number(tmp_path, drawn):
    rows = {"base": (5.0, 1.0), "arabic": (2.0, 4.0), "merged": (2.0, 1.5)}
    table = {
        name: {domain: {"tokens_per_word": value} for domain, value in zip(("ar", "en"), values, strict=True)}
        for name, values in rows.items()
    }
    fertility_bars(table, tmp_path / "figures" / "fertility.png")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["fertility.png"]
    (figure,) = drawn
    (ax,) = figure.axes
    assert [[bar.get_height() for bar in group] for group in ax.containers] == [
        list(values) for values in rows.values()
    ]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["Arabic", "English"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(rows)
    # Side by side: no bar hides another.
    spans = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for group in ax.containers for bar in group)
    assert all(right <= left for (_, right), (left, _) in zip(spans, spans[1:], strict=False))
