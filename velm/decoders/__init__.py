"""Decoders. `velm.decoders` is this package and the registry of that kind in one."""

from velm.registry import decoders as _registry

build, entries, find, get, names, register = (
    _registry.build,
    _registry.entries,
    _registry.find,
    _registry.get,
    _registry.names,
    _registry.register,
)
