"""``gdml doctor``: what works on this machine, and what would mend the rest."""

import argparse
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from . import _options

_NEEDED = ("torch", "timm", "anndata", "scanpy", "zarr", "pyvips", "openslide")
_EXTRAS = (
    ("spatialdata", "spatial", "SpatialData"),
    ("squidpy", "spatial", "plots of squidpy"),
    ("distributed", "cluster", "Dask clusters"),
)
_WHEELS = {"pyvips": "'pyvips[binary]'", "openslide": "openslide-bin openslide-python"}
# what imports raise where a library, or the version of another package, does not fit
_BROKEN = (ImportError, OSError, AttributeError, ValueError, TypeError, RuntimeError)
_FULL_GB = 10.0  # free space that is worth a warning: features of a few slides


@dataclass(frozen=True)
class Check:
    """A line of the report.

    Parameters
    ----------
    level
        ``"ok"``; ``"warn"``, something is missing that not everybody needs; ``"fail"``, gdml does not work.
    what
        What was found.
    mend
        What to do about it; empty where all is well.
    """

    level: Literal["ok", "warn", "fail"]
    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.level:<5} {self.what}" + (f"; mend: {self.mend}" if self.mend else "")


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = _options.add_parser(
        commands,
        "doctor",
        "check the installation",
        description="Check packages, devices, weights of encoders, the cache and a test slide. Nothing is downloaded. "
        "The exit status is 1 if a check fails.",
        example="srun --gres=gpu:1 gdml doctor",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    levels = []
    for check in checks():
        print(check, flush=True)
        levels.append(check.level)
    print(f"{levels.count('fail')} failed, {levels.count('warn')} warnings")
    return int("fail" in levels)


def examine() -> list[Check]:
    """Make all checks.

    Returns
    -------
    Their lines, in the order of the report.
    """
    return list(checks())


def checks() -> Iterator[Check]:
    """Make the checks one by one; what follows a package that cannot be imported is left out."""
    from gdml import __version__

    yield Check("ok", f"gdml {__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    broken = False
    for package in _NEEDED:
        check = _package(package)
        broken |= check.level == "fail"
        yield check
    for package, extra, purpose in _EXTRAS:
        yield _extra(package, extra, purpose)
    yield from _cache()
    if broken:
        return
    from . import _machine, _test_slide

    yield from _machine.devices()
    yield from _machine.encoders()
    yield _test_slide.check()


def _package(name: str) -> Check:
    """Whether a package that gdml needs can be imported, with the native libraries that it loads."""
    try:
        found = _imported(name)
    except ModuleNotFoundError as error:
        return Check("fail", f"{name} cannot be imported ({error})", "pip install --force-reinstall gdml")
    except _BROKEN as error:
        return Check(
            "fail",
            f"{name} is installed and cannot be loaded ({_first_line(error)})",
            f"pip install --force-reinstall {_WHEELS.get(name, name)}",
        )
    return Check("ok", found)


def _extra(name: str, extra: str, purpose: str) -> Check:
    """Whether an optional package can be imported."""
    mend = f"pip install 'gdml[{extra}]'"
    try:
        return Check("ok", _imported(name))
    except ModuleNotFoundError as error:
        if error.name == name:
            return Check("warn", f"{name} is not installed, for {purpose}", mend)
        return Check("warn", f"{name} cannot be imported ({error}), for {purpose}", mend)
    except _BROKEN as error:
        return Check("warn", f"{name} cannot be imported ({_first_line(error)}), for {purpose}", f"{mend} --upgrade")


def _imported(name: str) -> str:
    """Import a package; its name and version, and those of its native library."""
    module = import_module(name)
    natives: dict[str, Callable[[], str]] = {
        "pyvips": lambda: f", libvips {'.'.join(str(module.version(i)) for i in range(3))}",
        "openslide": lambda: f", OpenSlide {module.__library_version__}",
    }
    return f"{name} {_version(name, module)}" + natives.get(name, str)()


def _cache() -> Iterator[Check]:
    """Check the cache folder: writable, its size, the free space."""
    from gdml import settings
    from gdml._cache import entries, shown
    from gdml._marker import check_writable

    folder = settings.cache_dir
    elsewhere = "set GDML_CACHE_DIR to a folder that you can write to"
    try:
        check_writable(folder, "Features", "GDML_CACHE_DIR")
    except OSError as error:
        yield Check("fail", f"the cache folder {str(folder)!r} cannot be written to ({_reason(error)})", elsewhere)
        return
    stored = shown(sum(entry.n_bytes for entry in entries(folder)))
    yield Check("ok", f"cache folder {str(folder)!r} can be written to, {stored} in it")
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    if free < _FULL_GB * 1e9:
        yield Check(
            "warn",
            f"{shown(free)} are free for the cache",
            "gdml.settings.clear_cache() deletes what can be computed again, or set GDML_CACHE_DIR to another disk",
        )
    else:
        yield Check("ok", f"{shown(free)} are free for the cache")


def _version(name: str, module: Any) -> str:
    try:
        return version("openslide-python" if name == "openslide" else name)
    except PackageNotFoundError:  # on the path, without metadata
        return str(getattr(module, "__version__", "of unknown version"))


def _reason(error: BaseException) -> str:
    cause = error.__cause__
    return str(getattr(cause, "strerror", None) or _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
