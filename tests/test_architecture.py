"""The rules of docs/architecture.md, checked on the source: imports point down, no circles, files stay short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 450

# Rooms of one line may use each other, as long as no circle of modules arises; all others only what is below.
LEVELS = (
    {
        "config",
        "settings",
        "inputs",
        "checksums",
        "files",
        "gguf_file",
        "errors",
        "interrupts",
        "slurm_queue",
        "streams",
        "watchdog",
        "recipe_inputs",
    },
    {"report", "kernels"},
    {"tokenizer", "corpus"},
    {"model", "data", "parallel"},
    {"weights"},
    {"training", "evaluation", "generation"},
    {"alignment", "planning", "rewriting"},
    {"tasks"},
    {"ablation"},
    {"launch", "workshop"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# Torch and transformers are truths for tests and rivals in the workshop. Nothing may depend on them.
FOREIGN = {"torch", "transformers", "tensorflow", "tests"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for folder in ("allam_jax", "kernels") for p in sorted((ROOT / folder).rglob("*.py"))}


def imported_by(path: Path, *, everywhere: bool) -> set[str]:
    """Full names of what a file imports; `everywhere` includes imports inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    nodes = ast.walk(tree) if everywhere else _executed_on_import(tree)
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{prefix}.{alias.name}" for alias in node.names)
    return names


def _executed_on_import(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _executed_on_import(child)


def our_module(name: str) -> str | None:
    """The longest prefix of an imported name that is a module of ours."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in MODULES:
            return ".".join(parts[:end])
    return None


def room(module: str) -> str | None:
    """`allam_jax.model.llama` -> `model`; `kernels.attention.api` -> `kernels`; None for the bare package.

    The workshop of the kernels stands above everything: it measures them inside a whole training step.
    """
    first, *rest = module.split(".")
    if first == "kernels":
        return "workshop" if rest[:1] == ["workshop"] else "kernels"
    return rest[0] if rest else None


def edges(*, everywhere: bool) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        targets = {our_module(name) for name in imported_by(path, everywhere=everywhere)}
        graph[module] = {target for target in targets if target and target != module}
    return graph


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """Some circle of the graph, its first node repeated at the end; None if there is none."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str] | None:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return None
        for target in sorted(graph.get(node, ())):
            if cycle := visit(target, [*trail, node]):
                return cycle
        done.add(node)
        return None

    for start in sorted(graph):
        if cycle := visit(start, []):
            return cycle
    return None


def upward(graph: dict[str, set[str]]) -> list[str]:
    """The imports that point up."""
    return [
        f"{module} imports {target}"
        for module, targets in graph.items()
        for target in targets
        if room(module) and room(target) and LEVEL_OF[room(target)] > LEVEL_OF[room(module)]
    ]


def test_every_room_has_a_level():
    assert {room(module) for module in MODULES} - {None} <= set(LEVEL_OF)


def test_names_of_files_occur_once():
    # A task's file bears the name of the task, which is often that of its subject; each room has its settings.
    names = [path.name for module, path in MODULES.items() if room(module) != "tasks"]
    names = [name for name in names if name not in ("__init__.py", "settings.py")]
    assert sorted(names) == sorted(set(names))


def test_imports_point_down():
    assert upward(edges(everywhere=True)) == []


def test_rooms_below_the_config_level_know_nothing_of_run_or_configs():
    for module, path in MODULES.items():
        tops = {name.split(".")[0] for name in imported_by(path, everywhere=True)}
        assert not tops & {"run", "configs", "experiments", "benchmarks"}, module


def test_kernels_import_nothing_of_ours():
    for module, targets in edges(everywhere=True).items():
        if room(module) == "kernels":
            assert {room(target) for target in targets} <= {"kernels"}, module


def test_no_import_cycles():
    assert find_cycle(edges(everywhere=True)) is None


@pytest.mark.parametrize("module", MODULES)
def test_no_test_only_dependency(module):
    names = imported_by(MODULES[module], everywhere=True)
    allowed = {"torch", "transformers"} if room(module) == "workshop" else set()
    assert not {name.split(".")[0] for name in names} & (FOREIGN - allowed)


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_short(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_matplotlib_is_imported_lazily():
    for module, path in MODULES.items():
        tops = {name.split(".")[0] for name in imported_by(path, everywhere=False)}
        assert "matplotlib" not in tops, module


# The checks above must be able to fail.


def test_a_cycle_is_found():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_an_upward_import_is_found():
    graph = {"allam_jax.model.llama": {"allam_jax.training.loop", "allam_jax.files"}}
    assert upward(graph) == ["allam_jax.model.llama imports allam_jax.training.loop"]


def test_imports_are_read_from_every_form(tmp_path, monkeypatch):
    source = tmp_path / "allam_jax" / "model" / "example.py"
    source.parent.mkdir(parents=True)
    source.write_text(
        "import a.b\nfrom allam_jax.data import batch\nfrom ..training import loop\ndef f():\n import c\n"
    )
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert imported_by(source, everywhere=True) == {"a.b", "allam_jax.data.batch", "allam_jax.training.loop", "c"}
    assert imported_by(source, everywhere=False) == {"a.b", "allam_jax.data.batch", "allam_jax.training.loop"}
