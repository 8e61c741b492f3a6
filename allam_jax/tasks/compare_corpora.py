"""Task `compare_corpora`: several corpora beside the one that they were made of; `report.md` and `report.json`.

    WORKDIR/report.md, report.json     every measure, and ten documents of each corpus to read
    WORKDIR/perplexities.jsonl, .png   of each document of each corpus, if `init.weights` names a model
    WORKDIR/rubric/, moderation/       answers of the judge and of the server of moderation (`over_rows`), if asked

A run that was killed goes on; what has been judged is not asked again.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allam_jax.config import require
from allam_jax.corpus.word_lists import bare_block_list
from allam_jax.files import json_text, sha256_of_json, write_json, write_text
from allam_jax.generation.endpoint import EndpointBackend
from allam_jax.generation.moderation_endpoint import ModerationBackend
from allam_jax.generation.over_rows import Backend, over_rows, read_answers, read_errors
from allam_jax.generation.requests import sampling_of
from allam_jax.generation.rows import Prompt
from allam_jax.report.distributions import draw_distributions
from allam_jax.report.markdown import figure, plain, quote, section, table, write_report
from allam_jax.rewriting import rubric
from allam_jax.rewriting.corpus_changes import changes, stems_of_two
from allam_jax.rewriting.moderation import moderation_table
from allam_jax.rewriting.restoration import blocked, diversity, scores, with_interval
from allam_jax.rewriting.settings import AskedDocumentsSettings
from allam_jax.settings import Settings
from allam_jax.tasks.compared_corpora import ComparedCorpora, Texts, read_corpora

_PAIRS = 10
_SHOWN = 600  # characters of a document
_QUANTILES = {"least": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "most": 1.0}
_PERPLEXITY, _BITS = "perplexity", "bits_per_byte"


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Compares `compare.corpora` with what they were made of; returns means with intervals, and all other measures."""
    from allam_jax.parallel.distributed import is_main_process  # here, because it imports JAX

    options = config.compare
    compared = read_corpora(options, seed=config.seed)
    perplexities = _perplexities(config, compared) if config.init.weights else {}
    if not is_main_process():
        return {}
    measures = _restored(compared) if options.damaged else _changed(compared)
    toxicity = {
        language: {name: blocked(texts.values(), bare_block_list(path)) for name, texts in compared.texts.items()}
        for language, path in options.block_lists.items()
    }
    result: dict[str, Any] = {
        "documents": len(compared.order),
        "restored" if options.damaged else "changed": {
            name: {measure: with_interval(values, seed=config.seed) for measure, values in found.items()}
            for name, found in measures.items()
        },
        "toxicity": toxicity,
        "diversity": {name: diversity(texts.values()) for name, texts in compared.texts.items()},
    }
    if perplexities:
        result["perplexities"] = _summary(perplexities, start=compared.start)
        rows = [
            {"corpus": name, "id": document, **values}
            for name, of_corpus in perplexities.items()
            for document, values in of_corpus.items()
        ]
        write_text(workdir / "perplexities.jsonl", "".join(f"{json_text(row)}\n" for row in rows))
    if options.rubric.endpoint.url:
        result["rubric"] = _graded(config, compared, workdir / "rubric")
    if options.moderation.endpoint.url:
        result["moderation"] = _moderated(config, compared, workdir / "moderation")
    write_json(workdir / "report.json", result)
    write_report(
        workdir / "report.md",
        title="Corpora compared",
        sections=list(_sections(result, compared, perplexities, path=workdir / "report.md")),
    )
    return result


def _restored(compared: ComparedCorpora) -> dict[str, dict[str, list[float]]]:
    originals = compared.texts[compared.truth]
    return {name: scores(originals, compared.planted, texts) for name, texts in compared.made.items()}


def _changed(compared: ComparedCorpora) -> dict[str, dict[str, list[float]]]:
    originals = compared.texts[compared.truth]
    common = stems_of_two(text for name, text in originals.items() if compared.languages[name] == "ar")
    return {
        name: changes(originals, texts, languages=compared.languages, common=common)
        for name, texts in compared.made.items()
    }


def _perplexities(config: Settings, compared: ComparedCorpora) -> dict[str, dict[str, dict[str, float]]]:
    """Corpus -> id -> perplexity and bits per byte at `init.weights`, of documents that have tokens.

    Equal texts are scored once.
    """
    from allam_jax.tasks.setup import scores_of_texts  # here, because it imports JAX and a model

    distinct = list(dict.fromkeys(text for texts in compared.texts.values() for text in texts.values()))
    found = {
        text: {_PERPLEXITY: score.perplexity, _BITS: score.bits_per_byte}
        for text, score in zip(distinct, scores_of_texts(config, distinct), strict=True)
        if score.tokens
    }
    return {
        name: {document: found[text] for document, text in texts.items() if text in found}
        for name, texts in compared.texts.items()
    }


def _summary(
    perplexities: Mapping[str, Mapping[str, Mapping[str, float]]], *, start: str
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure -> corpus -> quantiles over documents, and the share of the documents that are below their start."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for measure in (_PERPLEXITY, _BITS):
        summary[measure] = {}
        for name, documents in perplexities.items():
            values = [found[measure] for found in documents.values()]
            summary[measure][name] = (
                {level: float(np.quantile(values, share)) for level, share in _QUANTILES.items()} if values else {}
            )
            before = perplexities[start]
            lower = [found[measure] < before[one][measure] for one, found in documents.items() if one in before]
            if lower and name != start:
                summary[measure][name][f"share below {start}"] = sum(lower) / len(lower)
    return summary


def _graded(config: Settings, compared: ComparedCorpora, directory: Path) -> dict[str, dict[str, Any]]:
    """Grades of the documents that have changed, by the judge; nobody is asked about those that have not."""
    options = config.compare.rubric
    path = require(
        options.instruction,
        key="compare.rubric.instruction",
        hint="give a file, such as configs/instructions/rubric.toml",
    )
    asked = rubric.read_rubric(path)
    versions = [
        version
        for name, texts in compared.made.items()
        if name != compared.start
        for version in itertools.islice(_versions(name, texts, compared, options), options.documents)
    ]
    prompts = list(rubric.prompts(versions, rubric=asked))
    backend = EndpointBackend(
        options.endpoint, sampling=sampling_of(options.sampling, seed=config.seed), section="compare.rubric"
    )
    _ask(prompts, backend, options, directory)
    return rubric.rubric_scores(
        read_answers(directory), read_errors(directory), criteria=asked.criteria, seed=config.seed
    )


def _versions(
    name: str, texts: Texts, compared: ComparedCorpora, options: AskedDocumentsSettings
) -> Iterator[rubric.Version]:
    start = compared.texts[compared.start]
    for document in compared.order:
        before, after = start.get(document), texts.get(document)
        if before is None or after is None or before == after:
            continue
        if max(len(before), len(after)) <= options.most_characters:
            yield rubric.Version(name, document, compared.languages.get(document, ""), before, after)


def _moderated(config: Settings, compared: ComparedCorpora, directory: Path) -> dict[str, dict[str, Any]]:
    """What the server of moderation says of each corpus; equal texts are asked about once."""
    options = config.compare.moderation
    rows: dict[str, int] = {}
    places: dict[str, list[int]] = {}
    for name, texts in compared.texts.items():
        some = (texts[document] for document in compared.order[: options.documents] if document in texts)
        short = (text for text in some if len(text) <= options.most_characters)
        places[name] = [rows.setdefault(text, len(rows)) for text in short]
    prompts = [Prompt(row, text) for text, row in rows.items()]
    _ask(prompts, ModerationBackend(options.endpoint, section="compare.moderation"), options, directory)
    return moderation_table(read_answers(directory), places)


def _ask(prompts: Sequence[Prompt], backend: Backend, options: AskedDocumentsSettings, directory: Path) -> None:
    over_rows(
        iter(prompts),
        total=len(prompts),
        backend=backend,
        directory=directory,
        identity={"prompts": sha256_of_json([prompt.asked for prompt in prompts])},
        shard_rows=options.shard_rows,
        max_error_share=1.0,  # what has no answer is counted and reported
    )


def _sections(
    result: Mapping[str, Any], compared: ComparedCorpora, perplexities: Mapping[str, Any], *, path: Path
) -> Iterator[str]:
    explained = "Means over documents, with 95 % bootstrap intervals."
    if "restored" in result:
        yield section("What was restored", explained, _means(result["restored"]))
    else:
        lost = (
            "What was lost or copied, and the length, are those of documents that are there and have changed; "
            "sentences of advertising may go."
        )
        yield section("What has changed", f"{explained} {lost}", _means(result["changed"]))
    for language, found in result["toxicity"].items():
        yield section(f"Blocked words, {language}", _rows(found))
    if "moderation" in result:
        yield section("Moderation", "Documents that the server flags.", _rows(result["moderation"]))
    if "rubric" in result:
        yield section("Rubric", *_rubric_blocks(result["rubric"], start=compared.start))
    yield section("Diversity", _rows(result["diversity"]))
    if perplexities:
        drawing = path.with_name("perplexities.png")
        labels = {"Perplexity": _PERPLEXITY, "Bits per byte": _BITS}
        draw_distributions(
            drawing,
            {
                shown: {
                    name: [one[measure] for one in of_corpus.values()]
                    for name, of_corpus in perplexities.items()
                    if of_corpus
                }
                for shown, measure in labels.items()
            },
        )
        tables = [f"{shown}:\n\n{_rows(result['perplexities'][measure])}" for shown, measure in labels.items()]
        caption = "Perplexity and bits per byte of the documents of each corpus, by the model at `init.weights`."
        yield section("Perplexity", *tables, figure(drawing, caption=caption, report=path))
    for name, texts in compared.made.items():
        yield section(f"Read: {name}", *_pairs(compared.texts[compared.truth], texts, truth=compared.truth))


def _means(measured: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    measures = sorted({measure for found in measured.values() for measure in found})
    rows = [
        {"measure": measure}
        | {
            name: "{mean:.3f} ({low:.3f} to {high:.3f})".format(**found[measure])
            for name, found in measured.items()
            if measure in found
        }
        for measure in measures
    ]
    return table(rows)


def _rubric_blocks(found: Mapping[str, Mapping[str, Any]], *, start: str) -> Iterator[str]:
    """Tables of the grades, of the documents behind them, and of what the judge makes of the order."""
    yield (
        f"Grades from 1 to 10 of changed documents, as they are in {plain(start)} and as they have become. Each pair "
        "was shown in both orders; a document counts that has all grades in both."
    )
    rows = [
        {"corpus": name, "criterion": criterion, "before": of["before"], "after": of["after"]}
        | {"difference": "{mean:+.2f} ({low:+.2f} to {high:+.2f})".format(**of["gain"])}
        for name, scored in found.items()
        for criterion, of in scored["grades"].items()
    ]
    if rows:
        yield table(rows)
    yield "More for the version that is shown first, and documents whose orders agree on the better version:"
    keys = ("documents", "graded", "first_over_second", "consistent")
    yield table(
        [
            {"corpus": name, **{key: scored[key] for key in keys}}
            | {"missing": ", ".join(f"{count} {reason}" for reason, count in scored["missing"].items()) or "none"}
            for name, scored in found.items()
        ]
        or [{"corpus": "none has changed"}]
    )


def _rows(found: Mapping[str, Mapping[str, float | None]]) -> str:
    return table([{"corpus": name, **values} for name, values in found.items()])


def _pairs(originals: Texts, texts: Texts, *, truth: str) -> Sequence[str]:
    """The first documents that differ, each beside the text that it is compared with."""
    different = [name for name, text in texts.items() if text != originals[name]][:_PAIRS]
    if not different:
        return [f"Nothing differs from the documents of {truth}."]
    shown = []
    for name in different:
        shown += [f"Document {plain(name)}: {truth}, then as it is.", quote(originals[name][:_SHOWN])]
        shown.append(quote(texts[name][:_SHOWN]))
    return shown
