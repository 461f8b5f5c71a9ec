"""Files to start one's own network, task or data set from: templates with the name put in."""

import keyword
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from cifarscale.config.lookup import bundled_folders
from cifarscale.config.registry import dataset_names, networks, registered_tasks, task_names
from cifarscale.errors import ConfigError, writing_to


def write_template(kind: str, name: str, folder: Path) -> list[Path]:
    """Writes a module, a recipe that names it, and a test.

    Args:
        kind: `network`, `task` or `dataset`.
        name: under which it is registered, and that of the files.
    Returns: the files.
    Raises: ConfigError for a name that is taken or cannot be one of a module, or a file that exists;
        CifarscaleError if the folder cannot be written.
    """
    _check(kind, name)
    source = bundled_folders("templates")[0] / kind
    placeholder = f"my_{kind}"
    texts = {
        folder / path.name.replace(placeholder, name): path.read_text(encoding="utf-8")
        .replace(placeholder, name)
        .replace(_class_name(placeholder), _class_name(name))
        for path in sorted(source.iterdir())
        if path.suffix in (".py", ".toml")
    }
    for path in texts:
        if path.exists():
            raise ConfigError(f"{path} exists already, and is left as it is. Take another name or --folder")
    for path, text in texts.items():
        with writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return list(texts)


def _check(kind: str, name: str) -> None:
    if not (name.isidentifier() and name[0].isalpha()) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} cannot name a {kind}: take letters, digits and _, and a letter in front")
    registered_tasks()  # which may register networks
    taken = {"network": networks(), "task": task_names(), "data set": dataset_names()}
    for what, names in taken.items():
        if name in names:
            raise ConfigError(f"there is a {what} {name!r} already; take another name")
    if name in sys.stdlib_module_names or name in packages_distributions():
        raise ConfigError(f"{name}.py would hide the module {name!r} that is installed here; take another name")


def _class_name(name: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))
