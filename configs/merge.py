"""Merges models, given by their paths in order: `--config configs/merge.py:PATH,PATH,...`

    python run.py --config configs/merge.py:runs/a/orbax,runs/b/orbax --workdir runs/merged --config.merge.method=slerp
    python run.py --config configs/merge.py:runs/trunk --config.merge.models.model_00.steps='(60, 80, 100)' \
        --config.merge.method=decay --workdir runs/merged

Writes both formats unless --config.export.formats says otherwise. When to merge, and the formulas: docs/merging.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(paths: str) -> ConfigDict:
    """`paths`: separated by commas."""
    config = base.get_config("merge")
    for number, path in enumerate(paths.split(",")):
        config.merge.models[f"model_{number:02}"] = base.merge_input(path=path)
    return config
