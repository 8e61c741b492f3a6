"""Task `train`: pre-training, continued pre-training and branches, resumable at any step.

The run's directory holds config.json, model.json, tokenizer/, metrics.jsonl, tensorboard/, checkpoints/ and report.md.
"""

from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from allam_jax.config import to_dict
from allam_jax.data.loader import Loader, make_loader
from allam_jax.errors import UserError
from allam_jax.evaluation.bits_per_byte import evaluate_sets, make_evaluator, metrics_row
from allam_jax.evaluation.report import write_run_report
from allam_jax.files import read_json, sha256_of_json
from allam_jax.model.config import LlamaConfig
from allam_jax.model.load import CHECKPOINTS_FOLDER, load_model, read_run, save_run
from allam_jax.model.weights import check_vocabulary
from allam_jax.parallel.distributed import is_main_process, process_rows
from allam_jax.parallel.mesh import check_batch
from allam_jax.tasks.setup import architecture, compute_options, mixture, open_evaluation, open_mesh, open_tokenizer
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.training.checkpoints import Checkpointer, Restored, describe_run, find_checkpoint, restore_checkpoint
from allam_jax.training.loop import Intervals, run_loop
from allam_jax.training.metrics import MetricsWriter, read_metrics
from allam_jax.training.optimizer import make_optimizer
from allam_jax.training.progress import Throughput
from allam_jax.training.schedules import make_schedule
from allam_jax.training.state import TrainState, abstract_state, random_params, start_state
from allam_jax.training.step import make_train_step


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains, or goes on training, in `workdir`; returns the final loss, speed and bits per byte by language."""
    # ---- setup ----
    mesh = open_mesh(config)
    check_batch(config.data.batch_size, accumulation=config.train.accumulation, mesh=mesh)
