"""The house: who may import whom, and what a start of the command line may load."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cifarscale
from cifarscale.config.registry import registered_task, task_names

PACKAGE = Path(cifarscale.__file__).parent

FLOORS = (
    ("__main__",),
    ("cli",),
    ("api",),
    ("report",),
    ("checks",),
    ("explain",),
    ("sweeps",),
    ("slurm",),
    ("launch",),
    ("tasks",),
    ("training",),
    ("evaluation",),
    ("data",),
    ("tracking",),
    ("distributed",),
    ("runs",),
    ("config",),
    ("errors", "log"),
    ("__init__",),
)
"""The rooms from top to bottom. A module imports from its own room, and from those on the floors below."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

PUBLIC_FACE = Path("__init__.py")
"""Imports from every room, when users ask for what it names."""

HEAVY = (
    *("torch", "torchvision", "ray", "submitit", "wandb", "webdataset", "pytorch_fid"),
    *("pydantic", "numpy", "scipy", "PIL", "requests", "matplotlib", "jinja2"),
)


def modules() -> list[Path]:
    return [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]


def room(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imports(module: Path) -> Iterator[str]:
    """The dotted names that a module imports anywhere in it."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def loaded_by(*arguments: str) -> set[str]:
    """Top-level modules that a Python has loaded after running these arguments."""
    program = (
        "import sys\n"
        "try:\n"
        f"    {'; '.join(arguments)}\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(ended.stderr.split())


def test_every_room_has_its_floor() -> None:
    assert {room(module) for module in modules()} == set(FLOOR)


@pytest.mark.parametrize("module", [m for m in modules() if m != PUBLIC_FACE], ids=str)
def test_a_module_imports_only_from_its_own_room_or_below(module: Path) -> None:
    for name in imports(module):
        package, _, rest = name.partition(".")
        if package != "cifarscale":
            continue
        other = rest.partition(".")[0]
        assert other in FLOOR or name == "cifarscale.__version__", "the public face is for users"
        other = other if other in FLOOR else "__init__"
        assert other == room(module) or FLOOR[other] > FLOOR[room(module)] or _is_ground(module, other), (
            f"{module} imports {name}"
        )


def _is_ground(module: Path, other: str) -> bool:
    """The modules of the ground floor stand side by side; `test_imports_go_round_in_no_circle` orders them."""
    return FLOOR[room(module)] == FLOOR[other] == FLOOR["errors"]


def test_a_public_name_is_what_a_type_checker_sees_and_no_folder_of_the_package() -> None:
    """A folder would take the name's place as soon as it is imported."""
    tree = ast.parse((PACKAGE / PUBLIC_FACE).read_text(encoding="utf-8"))
    checked = [node.body for node in tree.body if isinstance(node, ast.If)]
    seen = {f"{each.module}.{each.names[0].asname}" for each in checked[0] if isinstance(each, ast.ImportFrom)}
    public = {name: getattr(cifarscale, name) for name in dir(cifarscale)}
    modules = {name for name, value in public.items() if inspect.ismodule(value)}
    named = {f"{value.__module__}.{name}" for name, value in public.items() if name not in modules}
    assert seen == named | {public[name].__name__ for name in modules}
    assert not set(dir(cifarscale)) & set(FLOOR)


def test_imports_go_round_in_no_circle() -> None:
    """Nor do those within functions, which would hide one."""
    names = {".".join(("cifarscale", *module.with_suffix("").parts)): module for module in modules()}
    graph = {
        name: {
            target
            for imported in imports(module)
            for target in (imported, imported.rpartition(".")[0])
            if target in names and target != name
        }
        for name, module in names.items()
    }
    while graph:
        leaves = {name for name, targets in graph.items() if not targets & set(graph)}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: targets for name, targets in graph.items() if name not in leaves}


@pytest.mark.parametrize("module", [m for m in modules() if "networks" in m.parts], ids=str)
def test_networks_import_torch_and_layers_and_nothing_else(module: Path) -> None:
    ours = (
        f"cifarscale.{'.'.join(module.parent.parts)}.",
        "cifarscale.training.attention.",
        "cifarscale.training.norm_layers.",
        "cifarscale.training.cost.",
    )
    foreign = {
        name
        for name in imports(module)
        if name.partition(".")[0] not in ({"torch"} | sys.stdlib_module_names) and not name.startswith(ours)
    }
    assert not foreign


def recipe_classes() -> set[str]:
    """The classes of recipes, each of which its own task alone may know."""
    return {registered_task(name).recipe.__name__ for name in task_names()}


@pytest.mark.parametrize("module", [m for m in modules() if room(m) not in ("tasks", "sweeps")], ids=str)
def test_the_house_knows_no_task_by_name(module: Path) -> None:
    named = {
        name for name in imports(module) if name.startswith("cifarscale.tasks.") and name.split(".")[2] in task_names()
    }
    assert not named, "ask the registry"
    text = (PACKAGE / module).read_text(encoding="utf-8")
    assert not [name for name in recipe_classes() if name in text]


@pytest.mark.parametrize("task", sorted(set(task_names()) - {"sweep"}))
def test_a_task_knows_the_recipe_of_no_other(task: str) -> None:
    others = recipe_classes() - {registered_task(task).recipe.__name__}
    for module in modules():
        if module.parts[:2] == ("tasks", task):
            text = (PACKAGE / module).read_text(encoding="utf-8")
            assert not [name for name in others if name in text], module


@pytest.mark.parametrize("module", modules(), ids=str)
def test_plots_alone_import_matplotlib(module: Path) -> None:
    allowed = module == Path("tracking/plots.py")
    assert allowed or not any(name.partition(".")[0] == "matplotlib" for name in imports(module))


def test_no_module_is_named_for_nothing() -> None:
    names = {part.removesuffix(".py") for module in modules() for part in module.parts}
    assert not names & {"utils", "util", "helpers", "helper", "misc", "common", "manager"}


@pytest.mark.parametrize("module", [m for m in modules() if m.name != "__main__.py"], ids=str)
def test_every_module_says_in_a_docstring_what_it_is_for(module: Path) -> None:
    assert ast.get_docstring(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))


def test_test_files_have_names_of_their_own() -> None:
    """Which pytest asks of files that are not in packages."""
    names = [path.name for path in (PACKAGE.parent / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_what_make_quick_runs_is_there() -> None:
    root = Path(__file__).parents[2]
    named = re.findall(r"tests/[\w/]+\.py(?:::\w+)?", (root / "Makefile").read_text(encoding="utf-8"))
    assert named
    for name in named:
        file, _, test = name.partition("::")
        assert f"def {test}" in (root / file).read_text(encoding="utf-8")


def test_jobs_and_shards_are_no_packages() -> None:
    """So that they never hide anybody's module of that name."""
    for folder in ("jobs", "slurm", "shards"):
        assert not list((PACKAGE.parent / folder).rglob("__init__.py"))


@pytest.mark.parametrize(
    "statements",
    [
        ("import cifarscale.cli.main",),
        ("from cifarscale.cli.main import main", "main(['--version'])"),
        ("from cifarscale.cli.main import main", "main(['--help'])"),
        ("from cifarscale.cli.main import main", "main(['train', '--help'])"),
        ("from cifarscale.cli.main import main", "main(['shards', 'build', '--help'])"),
        ("from cifarscale.cli.main import main", "main(['doctor', '--help'])"),
        ("from cifarscale.cli.main import main", "main(['sweep', '--help'])"),
        ("from cifarscale.cli.main import main", "main(['report', '--help'])"),
        ("from cifarscale.cli.main import main", "main(['profiles', 'check', '--help'])"),
    ],
    ids=lambda statements: statements[-1],
)
def test_help_loads_nothing_heavy(statements: tuple[str, ...]) -> None:
    assert not loaded_by(*statements) & set(HEAVY)


def test_training_needs_neither_ray_nor_matplotlib() -> None:
    loaded = loaded_by("import cifarscale.training.run, cifarscale.launch.local, cifarscale.sweeps.running")
    assert not loaded & {"ray", "matplotlib"}


def test_a_launcher_of_ranks_needs_no_torch() -> None:
    """It prepares a job, while the process that forks its ranks imports torch for all of them."""
    loaded = loaded_by(
        "import cifarscale.cli.main, cifarscale.launch.local",
        "import cifarscale as cs",
        "cs.train, cs.sweep, cs.distance",
        "from cifarscale.config.registry import registered_task, task_names",
        "[registered_task(name) for name in task_names()]",
    )
    assert "torch" not in loaded


def test_a_job_is_queued_and_its_task_read_back_without_torch() -> None:
    """On the node its environment, which says how many cores torch takes, comes first."""
    assert "torch" not in loaded_by("import cifarscale.slurm.submission, cifarscale.slurm.task")


@pytest.mark.parametrize("command", ["jobs", "profiles"])
def test_listing_needs_no_torch(command: str) -> None:
    assert "torch" not in loaded_by("from cifarscale.cli.main import main", f"main(['{command}', 'list'])")
