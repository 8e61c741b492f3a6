"""Fertility: how many tokens a tokenizer needs for a word or a byte of text (ALLaM section 2.2, Figure 1)."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from allam_jax.errors import UserError
from allam_jax.report.style import COLOURS, STYLE, language_name, legend, save_figure, subplots
from allam_jax.tokenizer.tokenizer import Tokenizer

FertilityTable = dict[str, dict[str, dict[str, float]]]  # tokenizer -> domain -> result of `fertility`


def fertility(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, float]:
    """Numbers of words (between white space), UTF-8 bytes and tokens over all texts, and their ratios.

    `tokens_per_word` and `tokens_per_byte` are ratios of sums, not means of ratios. UserError if there is no word.
    """
    texts = list(texts)
    words = sum(len(text.split()) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    if not words:
        raise UserError("fertility: the texts have no words; check the sources")
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    return {
        "tokens_per_word": tokens / words,
        "tokens_per_byte": tokens / size,
        "words": words,
        "bytes": size,
        "tokens": tokens,
    }


def fertility_table(tokenizers: Mapping[str, Tokenizer], domains: Mapping[str, Iterable[str]]) -> FertilityTable:
    """`fertility` of every tokenizer on every domain (such as en, ar, code)."""
    texts = {domain: list(lines) for domain, lines in domains.items()}
    return {
        name: {d: fertility(tokenizer, lines) for d, lines in texts.items()} for name, tokenizer in tokenizers.items()
    }


def fertility_bars(table: FertilityTable, path: Path) -> None:
    """Draws fertility as in the paper's Figure 1 (a PNG): a group of bars for each domain, one for each tokenizer."""
    import matplotlib

    names = list(table)
    domains = list(table[names[0]])
    width = 0.8 / len(names)
    with matplotlib.rc_context(STYLE):
        size = (max(1.2 + 0.5 * len(domains) * (len(names) + 1), 4.2), 3.6)
        figure, axes = subplots(rows=1, columns=1, size=size, heights=(1,))
        ax = axes[0, 0]
        ax.grid(axis="x", visible=False)
        for n, name in enumerate(names):
            places = [d + (n - (len(names) - 1) / 2) * width for d in range(len(domains))]
            heights = [table[name][domain]["tokens_per_word"] for domain in domains]
            bars = ax.bar(places, heights, width * 0.94, label=name, color=COLOURS[n % len(COLOURS)])
            ax.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        ax.set_xticks(range(len(domains)), [language_name(domain) for domain in domains])
        ax.set_ylabel("Fertility (tokens per word)")
        ax.margins(y=0.12)
        legend(figure, ax, columns=4, title="Tokenizer")
        save_figure(figure, path)
