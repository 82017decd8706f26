"""The code that a run depends on: a changed model, layer or loop gives other numbers."""

import hashlib
import inspect
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

#: Where the training of every model, and its labels, come from.
_ALWAYS = ("gdml.training.fitting", "gdml.expression")
_FOLLOWED = ("gdml.models", "gdml.training", "gdml.expression", "gdml.metrics", "gdml._correlation")


def code_digest(model: type) -> str:
    """Hash of the source of a model, and of the modules of gdml that it and its training use.

    Parameters
    ----------
    model
        Class of the model. One that was typed at a prompt, where no source is kept, counts by its name.

    Returns
    -------
    Hexadecimal.
    """
    own = model if model.__module__ == "__main__" else sys.modules.get(model.__module__)
    homes = (model.__module__, *(base.__module__ for base in model.__mro__), *_ALWAYS)
    used = used_modules(sys.modules[name] for name in homes if name in sys.modules)
    digest = hashlib.blake2b(_source(own, model.__qualname__).encode(), digest_size=8)
    for name in sorted(used):
        digest.update(_source(used[name], name).encode())
    return digest.hexdigest()


def used_modules(modules: Iterable[ModuleType]) -> dict[str, ModuleType]:
    """Modules of models, training, labels and metrics that ``modules`` take names from, directly or not."""
    waiting = list(modules)
    first = {module.__name__ for module in waiting}
    found: dict[str, ModuleType] = {}
    seen: set[str] = set()
    while waiting:
        module = waiting.pop()
        ours = module.__name__.startswith(_FOLLOWED)
        if module.__name__ in seen or not (ours or module.__name__ in first):
            continue
        seen.add(module.__name__)
        if ours:
            found[module.__name__] = module
        for value in list(vars(module).values()):
            home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(home, str) and home in sys.modules:
                waiting.append(sys.modules[home])
    return found


def _source(found: Any, otherwise: str) -> str:
    try:
        return inspect.getsource(found)
    except (OSError, TypeError):
        return otherwise
