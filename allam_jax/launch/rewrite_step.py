"""A step of datatrove's pipelines that rewrites a part of a dataset, for its executors: local, Slurm or Ray.

    LocalPipelineExecutor([RewriteStep(config, "runs/rewritten/parts")], tasks=16, workers=2).run()

Task `join_rewrites` joins the parts.
"""

from pathlib import Path

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from ml_collections import ConfigDict

from allam_jax.tasks import runner


class RewriteStep(PipelineStep):
    """Each task rewrites as many documents as any other, in a workdir of its own; a task that was killed goes on."""

    name = "rewrite"
    type = "allam_jax"

    def __init__(self, config: ConfigDict, directory: str | Path):
        """Notes what is done.

        Args:
            config: of task `rewrite` or `translate`, with paths that all machines know.
            directory: gets the workdir of each task, on a file system that all machines share.
        """
        super().__init__()
        self._config, self._directory = config, Path(directory)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Rewrites part `rank` of `world_size`; its counts are datatrove's statistics. Passes `data` on."""
        config = self._config.copy_and_resolve_references()
        config[config.task].update(part=rank, parts=world_size)
        result = runner.run(config, workdir=self._directory / f"{rank:05d}")
        for name, count in result.items():
            if isinstance(count, int):
                self.stat_update(name, value=count)
        return data
