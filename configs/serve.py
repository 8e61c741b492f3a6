"""Serves a model to clients of OpenAI's API, and to a browser at http://127.0.0.1:8000.

pip install -r requirements-serve.txt
python run.py --config configs/serve.py --config.init.weights=runs/quickstart/export/orbax
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Needs init.weights."""
    return base.get_config("serve")
