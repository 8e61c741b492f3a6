"""Mixtures worked out: against Table 1 of the paper, sums written out, and what a loader really draws."""

import json

import numpy as np
import pytest

from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset
from allam_jax.data.loader import make_loader
from allam_jax.data.mixture_plan import check_sum, plan_mixture
from allam_jax.data.phases import make_phases
from allam_jax.data.settings import PhaseSettings, SourceSettings
from allam_jax.errors import UserError
from allam_jax.tasks import runner
from allam_jax.tasks.registry import settings_of
from allam_jax.tasks.setup import weighted
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from allam_jax.tokenizer.tokenizer import Tokenizer
from configs import base
from configs.mixtures import allam

# The paper's Table 1, last column, and the talk's, as printed; and where the products of the columns say otherwise.
OVERALL = {"web": 48, "books": 11, "wiki": 0.3, "news": 3, "science": 14, "code": 21, "math": 2.5, "other": 0.2}
PRODUCTS = {"math": 0.55 * 5, "other": 0.225 * (1.3 + 0.39)}
SCRATCH = {"web": 71, "books": 3, "wiki": 0.1, "science": 6, "code": 17, "math": 0.9, "other": 2}


def plan(weights, *, available, budget, later=None, max_epochs=0.0, tokens_per_step=10):
    return plan_mixture(
        dict.fromkeys(weights, SourceSettings()),
        phases=make_phases(weights, {name: PhaseSettings(**phase) for name, phase in (later or {}).items()}),
        available=available,
        budget=budget,
        tokens_per_step=tokens_per_step,
        max_epochs=max_epochs,
    )


def test_table_1_of_the_paper(tmp_path, capsys):
    runner.run(allam.get_config(), workdir=tmp_path)
    printed = capsys.readouterr().err
    assert printed == (tmp_path / "mixture.md").read_text()
    assert "| english_code | en | code | natural | – | 21.45 % | 257.4 B | – | – |" in printed
    facts = json.loads((tmp_path / "mixture.json").read_text())
    assert facts["budget"] == 1_200_000_000_000
    lines = facts["sources"]
    assert sum(line["share"] for line in lines.values()) == pytest.approx(1, abs=1e-12)
    # Tokens of the languages, as printed below the table: 660 B, 270 B, 270 B.
    tokens = dict.fromkeys(allam.LANGUAGES, 0.0)
    domains = dict.fromkeys(OVERALL, 0.0)
    for name, line in lines.items():
        language, domain = name.split("_")
        tokens[language] += line["tokens"]
        domains[domain] += 100 * line["share"]
        column = allam.MIXED[language]
        assert sum(column.values()) == pytest.approx(100)
        assert line["tokens"] == pytest.approx(1.2e12 * allam.LANGUAGES[language][0] / 100 * column[domain] / 100)
    assert tokens == {
        "english": pytest.approx(660e9),
        "arabic": pytest.approx(270e9),
        "translated": pytest.approx(270e9),
    }
    for domain, share in domains.items():
        if domain in PRODUCTS:
            assert share == pytest.approx(PRODUCTS[domain])
        else:
            assert abs(share - OVERALL[domain]) <= 0.5 if OVERALL[domain] > 1 else abs(share - OVERALL[domain]) < 0.05
    assert (tmp_path / "mixture.png").read_bytes().startswith(b"\x89PNG")


def test_the_talks_english_from_scratch(tmp_path):
    result = runner.run(allam.get_config("english"), workdir=tmp_path)
    assert result["tokens"] == 4_000_000_000_000
    assert result["shares"] == {f"english_{domain}": pytest.approx(share / 100) for domain, share in SCRATCH.items()}


def test_tokens_epochs_and_upsampling_of_two_phases_written_out():
    weights = {"en": 3.0, "ar": 1.0, "wiki": 0.0}
    later = {"mid": {"from_step": 60, "weights": {"ar": 0.5, "wiki": 0.5}}}
    made = plan(weights, later=later, available={"en": 900, "ar": 100, "wiki": 50}, budget=1000)
    en, ar, wiki = made.lines
    # 600 tokens at 3 to 1, then 400 at 1 to 1.
    assert made.phases == (("start", 600), ("mid", 400))
    assert (en.tokens, ar.tokens, wiki.tokens) == (450, 150 + 200, 200)
    assert (en.share, ar.share, wiki.share) == (0.45, 0.35, 0.2)
    assert (en.epochs, ar.epochs, wiki.epochs) == (0.5, 3.5, 4)
    assert wiki.upsampling == pytest.approx(0.2 / (50 / 1050))
    assert (ar.shares, wiki.shares) == ((0.25, 0.5), (0, 0.5))
    # A shorter run never comes to the second phase.
    assert plan(weights, later=later, available={"en": 900, "ar": 100, "wiki": None}, budget=500).phases == (
        ("start", 500),
    )


@pytest.mark.parametrize("later", [{}, {"mid": {"from_step": 60, "weights": {"ar": 1}}}])
def test_above_the_limit_the_largest_budget_is_named_and_it_is(later):
    options = {"later": later, "available": {"en": 900, "ar": 100}, "max_epochs": 3.0}
    weights = {"en": 3.0, "ar": 1.0}
    with pytest.raises(UserError, match="source ar would be used") as error:
        plan(weights, budget=2000, **options)
    assert "\n" not in str(error.value)
    named = int(str(error.value).split("is ")[-1].split(" tokens")[0].replace(",", ""))
    # By trying every budget instead of solving for it.
    possible = []
    for budget in range(1, 2001):
        try:
            plan(weights, budget=budget, **options)
            possible.append(budget)
        except UserError:
            pass
    assert possible == list(range(1, named + 1))
    assert named == (750 if later else 1200)


def test_impossible_mixtures():
    for options, message in (
        ({"available": {"a": 10, "b": 0}}, "source b has no tokens, but 25.00% of the run"),
        ({"available": {"a": 10, "b": None}, "max_epochs": 2.0}, "tokens of source b are not known"),
    ):
        with pytest.raises(UserError, match=message):
            plan({"a": 3.0, "b": 1.0}, **{"budget": 10, **options})
    check_sum(make_phases({"a": 0.5504, "b": 0.45}, {}), expected=1.0)  # rounded shares will do
    with pytest.raises(UserError, match="add up to 1.1, not 1; for instance make a 0.55 instead of 0.65"):
        check_sum(make_phases({"a": 0.65, "b": 0.45}, {}), expected=1.0)
    with pytest.raises(UserError, match="phase mid add up to 50, not 100"):
        check_sum(make_phases({"a": 100}, {"mid": PhaseSettings(from_step=1, weights={"a": 50})}), expected=100.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two datasets of sentences of about 20 tokens and their tokenizer."""
    root = tmp_path_factory.mktemp("mixture")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), size=4)) for _ in range(50)]
    texts = {name: [" ".join(rng.choice(words, size=8)) for _ in range(n)] for name, n in (("big", 400), ("small", 60))}
    for name, some in texts.items():
        documents = [Document(text=text, id=str(i), source=name, language="en") for i, text in enumerate(some)]
        write_dataset(documents, directory=root / name, name=name, validation_share=0)
    train_sentencepiece((text for some in texts.values() for text in some), output=root / "tokenizer", vocab_size=320)
    return root, texts


def config_for(root, **weights):
    config = base.get_config("mixture")
    config.tokenizer = str(root / "tokenizer")
    for name, weight in weights.items():
        config.data.sources[name] = base.mixture(path=str(root / name), weight=weight)
    config.data.update(seq_len=32, batch_size=4)
    config.train.steps = 150
    return config


def test_the_epochs_are_those_that_the_loader_goes_through(corpus, tmp_path):
    """From text, and from tokens that the tokenize task has written; with a second mixture from step 90 on."""
    root, texts = corpus
    config = config_for(root, big=0.7, small=0.3)
    config.data.phases.end = base.phase(from_step=90, big=0.4, small=0.6)
    tokenizer = Tokenizer.load(root / "tokenizer")
    planned = runner.run(config, workdir=tmp_path / "text")
    facts = json.loads((tmp_path / "text" / "mixture.json").read_text())["sources"]
    for name, some in texts.items():
        assert facts[name]["available"] == sum(len(tokenizer.encode(text)) + 1 for text in some)
    assert planned["tokens"] == 150 * 4 * 32
    assert planned["shares"] == {"big": pytest.approx(0.6 * 0.7 + 0.4 * 0.4), "small": pytest.approx(0.42)}

    config.task = "tokenize"
    counts = runner.run(config, workdir=tmp_path / "tokens")
    assert {name: count["targets"] for name, count in counts.items()} == {n: f["available"] for n, f in facts.items()}
    config.task = "mixture"
    for name in texts:
        config.data.sources[name].path = str(tmp_path / "tokens" / name)
    assert runner.run(config, workdir=tmp_path / "cached") == planned

    config.data.lanes = 1
    with make_loader(weighted(settings_of(config).data), tokenizer=tokenizer, seed=0) as loader:
        for _ in range(150):
            next(loader)
        seen = loader.epochs()
    for name, epochs in planned["epochs"].items():
        # A few rows and one unfinished document off, of an epoch of 60 documents or more.
        assert seen[name] == pytest.approx(epochs, abs=0.15), name


def test_stated_by_epochs(corpus, tmp_path):
    root, _ = corpus
    config = config_for(root, big=1, small=1)
    config.data.sources.big.epochs, config.data.sources.small.epochs = 1.0, 4.0
    result = runner.run(config, workdir=tmp_path / "epochs")
    lines = json.loads((tmp_path / "epochs" / "mixture.json").read_text())["sources"]
    big, small = lines["big"]["available"], lines["small"]["available"]
    assert result["tokens"] == big + 4 * small
    assert result["epochs"] == {"big": pytest.approx(1), "small": pytest.approx(4)}
    assert result["shares"]["small"] == pytest.approx(4 * small / (big + 4 * small), abs=1e-6)
    # Training takes the same mixture, once the numbers are known to it.
    with pytest.raises(UserError, match="data.sources.big: epochs need the number of its tokens"):
        weighted(settings_of(config).data)
    config.task = "tokenize"
    runner.run(config, workdir=tmp_path / "tokens")
    for name in ("big", "small"):
        config.data.sources[name].path = str(tmp_path / "tokens" / name)
    data = weighted(settings_of(config, task="mixture").data)
    weights = {name: source.weight for name, source in data.sources.items()}
    assert weights == {"big": big, "small": 4 * small}
    config.task = "mixture"
    config.mixture.tokens = 2 * (big + 4 * small)
    with pytest.raises(UserError, match="add up to .* tokens; take that budget, or multiply all epochs by 2$"):
        runner.run(config, workdir=tmp_path / "other")
    config.data.sources.small.epochs = 0.0
    with pytest.raises(UserError, match="data.sources.small: has no epochs, but big has"):
        runner.run(config, workdir=tmp_path / "other")


def test_refused_on_the_command_line_in_one_line(corpus, tmp_path):
    root, _ = corpus
    for change, message in (
        (lambda c: c.mixture.update(max_epochs=1.0), "source small would be used"),
        (lambda c: c.mixture.update(sum_of_weights=100.0), "add up to 1, not 100"),
        (
            lambda c: c.data.phases.update(x=base.phase(from_step=3, smal=1)),
            "unknown source 'smal'; did you mean small",
        ),
        (lambda c: c.data.sources.small.update(path=str(root / "none")), "none: no dataset here"),
        (lambda c: c.data.sources.small.update(tokens=-1), "small.tokens = -1"),
    ):
        config = config_for(root, big=0.5, small=0.5)
        change(config)
        with pytest.raises(UserError, match=message) as error:
            runner.run(config, workdir=tmp_path / "run")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run" / "mixture.json").exists()
