"""Fertility: how many tokens a tokenizer spends on a word or a byte of text (ALLaM section 2.2, Figure 1)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from allam_jax.errors import UserError
from allam_jax.files import atomic_path
from allam_jax.tokenizer.tokenizer import Tokenizer

FertilityTable = dict[str, dict[str, dict[str, float]]]  # tokenizer -> domain -> what `fertility` gives


def fertility(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, float]:
    """Counts over all texts: words (between white space), bytes (UTF-8), tokens; and their ratios.

    tokens_per_word and tokens_per_byte are sums over sums, not means of ratios. UserError if there is no word.
    """
    texts = list(texts)
    words = sum(len(text.split()) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    if not words:
        raise UserError("fertility: the texts have no word; check the sources")
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    return {
        "tokens_per_word": tokens / words,
        "tokens_per_byte": tokens / size,
        "words": words,
        "bytes": size,
        "tokens": tokens,
    }


def fertility_table(tokenizers: Mapping[str, Tokenizer], domains: Mapping[str, Iterable[str]]) -> FertilityTable:
    """`fertility` of every tokenizer on every domain (such as en, ar, code): `table[tokenizer][domain]`."""
    texts = {domain: list(lines) for domain, lines in domains.items()}
    return {
        name: {d: fertility(tokenizer, lines) for d, lines in texts.items()} for name, tokenizer in tokenizers.items()
    }


def plot_fertility(table: FertilityTable, path: Path) -> None:
    """Writes a PNG like Figure 1: a group of bars for each domain, a bar for each tokenizer, in tokens per word."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: matplotlib is slow to import
    from matplotlib.figure import Figure

    # Okabe and Ito's palette, told apart with any kind of colour vision.
    colours = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]
    names = list(table)
    domains = list(table[names[0]])
    figure = Figure(figsize=(1.8 + 0.55 * len(domains) * (len(names) + 1), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(names)
    for n, name in enumerate(names):
        places = [d + (n - (len(names) - 1) / 2) * width for d in range(len(domains))]
        heights = [table[name][domain]["tokens_per_word"] for domain in domains]
        bars = axes.bar(places, heights, width * 0.94, label=name, color=colours[n % len(colours)])
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    axes.set_xticks(range(len(domains)), domains)
    axes.set_xlabel("text")
    axes.set_ylabel("fertility (tokens per word)")
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="tokenizer", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    settings: dict[str, Any] = {"format": "png", "metadata": {"Software": None}}
    with atomic_path(path) as temporary:
        figure.savefig(temporary, **settings)
