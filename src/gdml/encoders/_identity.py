"""Identity of a user's encoder: a hash of its code, weights and settings, the same on every machine."""

import dis
import functools
import hashlib
import inspect
import logging
import os
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, type(...), np.dtype, torch.dtype, torch.Size)
_STDLIB = sysconfig.get_path("stdlib")
_INSTALLED = {"site-packages", "dist-packages"}
_STATE = ("_parameters", "_buffers", "_modules")
# Attributes of modules and classes that do not change the numbers
_SKIPPED = {
    *_STATE,
    "training",
    "_non_persistent_buffers_set",
    "_is_full_backward_hook",
    "_is_torch_compile",
    "_compile_kwargs",
    "_compiled_call_impl",
    "_abc_impl",
}


def content_identity(function: Callable[..., Any], **settings: Any) -> str:
    """Hash of the code and weights of a function or module.

    A function counts by its bytecode, constants, defaults, closure and the global names that it reads; a module by its
    class, parameters, buffers, hooks and other attributes; what an installed package defines by its name and the
    package's version. Comments, file names and the device of the weights do not count.

    Parameters
    ----------
    function
        Function, callable object or :class:`torch.nn.Module`.
    **settings
        Further values that the numbers depend on.

    Returns
    -------
    16 hexadecimal digits.

    Raises
    ------
    ValueError
        If it refers to something without readable content, such as an open file.
    """
    digest = _Digest()
    digest.add(settings)
    digest.add(function)
    return digest.hexdigest()


class _Digest:
    """Hash of Python objects by their content."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)
        # place of each object that may be part of a cycle; held, so that no other object takes its id
        self._seen: dict[int, tuple[int, Any]] = {}

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def add(self, found: Any) -> None:
        if isinstance(found, _PLAIN):
            self._tag(type(found).__name__, repr(found))
        elif isinstance(found, torch.Tensor):
            data = found.detach().cpu().contiguous()
            self._tag("tensor", f"{data.dtype} {tuple(data.shape)}")
            self._bytes("values", data.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(found, np.ndarray | np.generic) and found.dtype != object:
            self._bytes(f"array {found.dtype} {found.shape}", np.ascontiguousarray(found).tobytes())
        elif isinstance(found, Mapping):
            self._items(found)
        elif isinstance(found, set | frozenset):
            self._tag("set", " ".join(sorted(content_identity(value) for value in found)))
        elif isinstance(found, list | tuple):
            self._values(type(found).__name__, found)
        elif isinstance(found, torch.device):
            self._tag("device", "")
        elif isinstance(found, os.PathLike):
            self._tag("path", os.fspath(found))
        elif isinstance(found, types.ModuleType | logging.Logger | np.ufunc):
            self._tag("named", _release(found.__name__ if not isinstance(found, logging.Logger) else found.name))
        elif id(found) in self._seen:
            self._tag("again", str(self._seen[id(found)][0]))
        else:
            self._seen[id(found)] = (len(self._seen), found)
            self._object(found)

    def _object(self, found: Any) -> None:
        """Add what may be part of a cycle."""
        if isinstance(found, types.CodeType):
            self._bytes("code", found.co_code)
            self._values("constants", (found.co_names, found.co_consts))
        elif isinstance(found, functools.partial):
            self._values("partial", (found.func, found.args, found.keywords))
        elif isinstance(found, types.MethodType):
            self._values("method", (found.__self__, found.__func__))
        elif isinstance(found, staticmethod | classmethod):
            self._values("method", (found.__func__,))
        elif isinstance(found, property):
            self._values("property", (found.fget,))
        elif isinstance(found, torch.jit.ScriptModule):
            self._values("script", (found.code, dict(found.state_dict())))
        elif isinstance(found, torch.nn.Module):
            self._module(found)
        elif (isinstance(found, type) or inspect.isroutine(found)) and _installed(found):
            self._tag("installed", f"{_release(found.__module__)} {found.__qualname__}")
        elif isinstance(found, types.FunctionType):
            self.add(found.__code__)
            self._values("defaults", (found.__defaults__, found.__kwdefaults__))
            self._values("closure", [cell.cell_contents for cell in found.__closure__ or ()])
            self._globals(found.__code__, found.__globals__)
        elif isinstance(found, type):
            own = {k: v for k, v in vars(found).items() if callable(v) or not k.startswith("__")}
            self._values("class", found.__bases__)
            self._items({k: v for k, v in own.items() if k not in _SKIPPED})
        elif inspect.isroutine(found):  # compiled, without a module: torch.relu
            self._tag("routine", found.__qualname__)
        elif hasattr(found, "__dict__"):
            self.add(type(found))
            self._items(vars(found))
        else:
            raise ValueError(
                f"`encoder` cannot be identified by its content: it refers to a {type(found).__qualname__}. Name it: "
                'gdml.encoders.CustomEncoder(function, identity="..."), with another identity for other weights or code.'
            )

    def _module(self, module: torch.nn.Module) -> None:
        module = getattr(module, "_orig_mod", module)  # of torch.compile
        self.add(type(module))
        for kind in _STATE:
            self._items(getattr(module, kind))
        own = {k: v for k, v in vars(module).items() if k not in _SKIPPED}
        self._items({k: v for k, v in own.items() if "_hooks" not in k})
        self._values("hooks", [hook for k, v in own.items() if k.endswith("_hooks") for hook in v.values()])

    def _globals(self, code: types.CodeType, scope: Mapping[str, Any]) -> None:
        """Add the global names that a function and its inner functions read."""
        names = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL" and i.argval in scope}
        self._items({name: scope[name] for name in names})
        for module in (scope[name] for name in sorted(names)):
            if isinstance(module, types.ModuleType) and not _installed(module):
                self._items({name: getattr(module, name) for name in code.co_names if hasattr(module, name)})
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self._globals(inner, scope)

    def _items(self, values: Mapping[Any, Any]) -> None:
        self._tag("mapping", str(len(values)))
        for key in sorted(values, key=repr):
            self._tag("key", repr(key))
            self.add(values[key])

    def _values(self, kind: str, values: Iterable[Any]) -> None:
        values = list(values)
        self._tag(kind, str(len(values)))
        for value in values:
            self.add(value)

    def _tag(self, kind: str, text: str) -> None:
        self._bytes(kind, text.encode())

    def _bytes(self, kind: str, content: bytes) -> None:
        self._hash.update(f"{kind} {len(content)}:".encode() + content)


def _installed(found: Any) -> bool:
    """Whether Python or an installed package defines something, not the user."""
    name = found.__name__ if isinstance(found, types.ModuleType) else found.__module__
    if name is None or name == "__main__":
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return name.partition(".")[0] in sys.stdlib_module_names
    return bool(_INSTALLED & set(Path(file).parts)) or file.startswith(_STDLIB)


def _release(name: str) -> str:
    """Name of a module and version of its package; torch's builds differ between machines and are left out."""
    top = name.partition(".")[0]
    version = "" if top == "torch" else str(getattr(sys.modules.get(top), "__version__", "")).partition("+")[0]
    return f"{name} {version}".strip()
