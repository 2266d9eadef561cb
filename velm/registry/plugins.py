"""Plugins: entry points of installed distributions, and the modules and .py files under `plugins:`."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from velm.errors import PluginError

__all__ = ["installed", "load_plugins", "loaded_files", "new_after_plugins"]

T = TypeVar("T")
_PREFIX = "velm_plugin_"  # of the names of modules that are .py files under `plugins:`


def load_plugins(plugins: Iterable[str]) -> None:
    """Import modules or .py files whose decorators register parts. Importing one twice does nothing.

    Raises:
        PluginError: one cannot be found or fails; the message names it and the cause.
    """
    for plugin in plugins:
        try:
            if plugin.endswith(".py"):
                _import_file(Path(plugin))
            else:
                importlib.import_module(plugin)
        except Exception as cause:
            raise PluginError(
                f"The plugin {plugin!r} cannot be imported: {type(cause).__name__}: {cause}. `plugins:` takes names of "
                f"modules that Python can import from {Path.cwd()} or its search path, and paths of .py files."
            ) from cause


def _import_file(path: Path) -> None:
    path = path.expanduser()
    resolved, name = path.resolve(), f"{_PREFIX}{path.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(resolved):
        return
    if not resolved.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    module_spec = importlib.util.spec_from_file_location(name, resolved)
    assert module_spec is not None  # a .py file always has both
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def loaded_files() -> tuple[str, ...]:
    """The .py files that `load_plugins` has imported, as full paths."""
    modules = [module for name, module in sys.modules.items() if name.startswith(_PREFIX)]
    return tuple(str(module.__file__) for module in modules)


def new_after_plugins(cls: type[T], files: Iterable[str]) -> T:
    """An object of `cls` without state, made after `files` are imported.

    For `__reduce__`: unpickling calls it before it reads the state, which may hold objects of classes in those files.
    A spawned or forkserver process finds such a class in no module that it can import.
    """
    load_plugins(files)
    return cls.__new__(cls)


def installed(group: str) -> tuple[tuple[str, str, str, str], ...]:
    """Name, target, distribution and version of each entry point of a group; cached until sys.path changes."""
    return _scan(importlib.metadata.entry_points, group, tuple((path, _mtime(path)) for path in sys.path))


@lru_cache(maxsize=32)
def _scan(entry_points: Callable[..., Any], group: str, search_path: tuple[Any, ...]) -> tuple[Any, ...]:
    rows = []
    for point in entry_points(group=group):
        owner = point.dist
        rows.append((point.name, point.value, owner.name if owner else "?", owner.version if owner else "?"))
    return tuple(rows)


def _mtime(path: str) -> int:
    """Modification time of a folder in ns; 0 if it does not exist."""
    try:
        return os.stat(path or ".").st_mtime_ns
    except OSError:
        return 0
