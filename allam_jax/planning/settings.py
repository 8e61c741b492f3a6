"""Settings of task plan: the cluster that a run is planned for."""

from allam_jax.parallel.gpus import GPUS
from allam_jax.settings import Section, setting


class PlanSettings(Section, name="plan"):
    """A described cluster, and what is looked for."""

    gpu: str = setting("a100", "kind of GPU", choices=tuple(GPUS))
    nodes: int = setting(1, "equal nodes", least=1)
    gpus_per_node: int = setting(8, "GPUs of a node", least=1)
    memory_gib: float = setting(0.0, "of one GPU; 0 here and below: what the data sheet says", least=0)
    nvlink_gb_s: float = setting(0.0, "of one GPU to its node, each way", least=0)
    network_gb_s: float = setting(0.0, "of one GPU to other nodes, each way: 200 Gbit/s are 25", least=0)
    usable_share: float = setting(
        0.92, "of the memory; set XLA_PYTHON_CLIENT_MEM_FRACTION to it when training", above=0, most=1
    )
    tokens: int = setting(0, "budget of the whole run; 0: train.steps steps", least=0, most=2**53)
    power_share: float = setting(0.75, "of a node's full draw, on average", least=0, most=1)
    pue: float = setting(1.25, "energy of the building per energy of its computers", least=1, most=10)
    preference: str = setting(
        "",
        "plan a step of task dpo, all rows full of pairs: cached (the reference's log-probabilities are there) or live "
        "(a second copy of the weights computes them); empty: of pre-training",
        choices=("", "cached", "live"),
    )
    compile: bool = setting(True, "compile the real step; without, figures come from formulas alone")
    search: bool = setting(False, "rank meshes, remat policies and accumulation at the same batch")
    search_compiles: int = setting(3, "best candidates of a search that are compiled to confirm them", least=1)
