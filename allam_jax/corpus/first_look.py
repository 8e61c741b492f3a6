"""A first look at all inputs of a corpus, so that what stops a run stops it before the work."""

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from allam_jax.corpus import web_archives
from allam_jax.corpus.corpus_plan import CorpusPlan
from allam_jax.corpus.found_files import kind_of
from allam_jax.corpus.readers import FileReader
from allam_jax.corpus.record_formats import csv_records
from allam_jax.corpus.settings import DocumentsSettings
from allam_jax.corpus.shards import FIELDS
from allam_jax.corpus.text_lines import DamagedFile
from allam_jax.errors import UserError, nearest
from allam_jax.files import shown

_KNOWN = (*FIELDS, "url", "date", "domain", "tags")  # fields that every document has, though they may be empty
_RECORDS = 100  # of a file, in which a field that is asked for is looked for


def check_inputs(plan: CorpusPlan) -> None:
    """Logs what is not read, and opens every file. It does not look for damage, of which a source can accept a share.

    UserError for a file that cannot be opened, lacks the column of the texts, has a column twice, or needs a library
    that is missing.
    """
    for name, source in plan.sources.items():
        for reason, skipped in plan.skipped.get(name, {}).items():
            logging.warning("corpus %s: %d not read (%s), such as %s", name, len(skipped), reason, skipped[0])
        for file in plan.found[name].files.values() if source.path else ():
            if not os.access(file, os.R_OK):
                raise UserError(
                    f"{shown(file)}: cannot read (permission denied); change its permissions, or move it away"
                )
            try:
                _check_file(file, source, fields=plan.record_fields(name))
            except DamagedFile:
                continue  # counted when its turn comes


def check_fields(plan: CorpusPlan) -> None:
    """UserError for a field in `features`, `url_field` or `date_field` that the first records of no file have."""
    asked = {name: "features" for name in plan.settings.features}
    for name, source in plan.sources.items():
        asked |= {getattr(source, key): f"sources.{name}.{key}" for key in ("url_field", "date_field")}
    missing = {name: key for name, key in asked.items() if name and name not in _KNOWN}
    seen: set[str] = set()
    for name, source in plan.sources.items():
        for file in plan.found[name].files.values() if source.path else ():
            if not missing.keys() - seen:
                return
            reader = FileReader(source, source=name, files=[file], fields=plan.record_fields(name))
            with contextlib.suppress(DamagedFile):  # counted when its turn comes
                for record in itertools.islice(reader.records(file), _RECORDS):
                    seen |= record.keys() if isinstance(record, dict) else set()
    for name, key in missing.items():
        if name not in seen:
            raise UserError(
                f"config.corpus.{key}: none of the first {_RECORDS} records of any file has a field {name!r}; "
                f"{nearest(name, sorted({*_KNOWN, *seen}))}"
            )


def _check_file(file: Path, source: DocumentsSettings, *, fields: Sequence[str]) -> None:
    kind = kind_of(file)
    if kind == "archive":
        web_archives.check_installed(file)
    elif kind == "parquet":
        from allam_jax.corpus.parquet_records import check_schema

        check_schema(file, text_field=source.text_field, optional=("id", *fields))
    elif kind in ("csv", "tsv"):
        rows = csv_records(
            file,
            text_field=source.text_field,
            dialect=kind,
            limit=source.max_record_bytes,
            optional=("id", *fields),
        )
        next(rows, None)
