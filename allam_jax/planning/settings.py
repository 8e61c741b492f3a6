"""Settings of the tasks that plan: the cluster that is planned for, and what is done there."""

from allam_jax.parallel.gpus import GPUS
from allam_jax.settings import Section, setting


class ClusterSettings(Section):
    """A described cluster."""

    gpu: str = setting("a100", "kind of GPU", choices=tuple(GPUS))
    nodes: int = setting(1, "equal nodes", least=1)
    gpus_per_node: int = setting(8, "GPUs of a node", least=1)
    memory_gib: float = setting(0.0, "of one GPU; 0 here and below: what the data sheet says", least=0)
    nvlink_gb_s: float = setting(0.0, "of one GPU to its node, each way", least=0)
    network_gb_s: float = setting(0.0, "of one GPU to other nodes, each way: 200 Gbit/s are 25", least=0)
    usable_share: float = setting(0.92, "of the memory; set XLA_PYTHON_CLIENT_MEM_FRACTION to it", above=0, most=1)
    power_share: float = setting(0.75, "of a node's full draw, on average", least=0, most=1)
    pue: float = setting(1.25, "energy of the building per energy of its computers", least=1, most=10)


class PlanSettings(ClusterSettings, name="plan"):
    """A training run on a described cluster, and what is looked for."""

    tokens: int = setting(0, "budget of the whole run; 0: train.steps steps", least=0, most=2**53)
    preference: str = setting(
        "",
        "plan a step of task dpo, all rows full of pairs: cached (the reference's log-probabilities are there) or live "
        "(a second copy of the weights computes them); empty: of pre-training",
        choices=("", "cached", "live"),
    )
    compile: bool = setting(True, "compile the real step; without, figures come from formulas alone")
    search: bool = setting(False, "rank meshes, remat policies and accumulation at the same batch")
    search_compiles: int = setting(3, "best candidates of a search that are compiled to confirm them", least=1)


class RewritePlanSettings(ClusterSettings, name="rewrite_plan"):
    """Documents that are rewritten or translated on a described cluster, as tasks rewrite and translate do it."""

    gpus_per_copy: int = setting(1, "GPUs of a node that share a copy of the worker (mesh.tensor)", least=1)
    tokens: int = setting(10_000_000_000, "of all documents", least=1, most=2**53)
    piece_tokens: float = setting(400.0, "of a piece, on average", least=1, most=1e6)
    instruction: str = setting(
        "", "TOML file with the instruction, whose longest prompt counts, a token for three bytes", path="files"
    )
    answer_share: float = setting(1.0, "tokens of an answer for a token of its piece", above=0, most=100)
    attempts: float = setting(1.1, "times that a piece is asked, on average", least=1, most=20)
    capacity: int = setting(2048, "tokens of a slot: the longest prompt with its answer (engine.capacity)", least=2)
    slots: int = setting(0, "of a copy (engine.slots); 0: as many as fit", least=0)
    burst: int = setting(16, "tokens between two looks at the queue (engine.burst)", least=1)
