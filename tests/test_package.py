"""The package as a whole: light import, rooms, documentation, one version."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import gdml

ROOT = Path(__file__).parents[1]
NAMESPACES = tuple(sorted(set(gdml.__all__) - {"__version__", "load", "settings"}))
HEAVY = ("torch", "scanpy", "squidpy", "timm", "spatialdata")
SECTION = re.compile(r"^(\S.*)\n-{3,}$", re.MULTILINE)

PUBLIC = [
    *(f"{space}.{name}" for space in NAMESPACES for name in import_module(f"gdml.{space}").__all__),
    "load",
]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)


def public_object(name: str):
    found = gdml
    for part in name.split("."):
        found = getattr(found, part)
    return found


def test_import_is_light():
    done = run_python(f"import sys, gdml; print(*[name for name in {HEAVY} if name in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_namespaces_are_listed_and_load():
    assert set(NAMESPACES) <= set(dir(gdml))
    done = run_python("import sys, gdml; gdml.pp.tile; print('scanpy' in sys.modules)")
    assert done.stdout.strip() == "True", done.stderr  # the check above would see it if it were loaded
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        gdml.nonsense  # noqa: B018


@pytest.mark.parametrize("name", NAMESPACES)
def test_tab_completion_shows_public_names_only(name):
    space = import_module(f"gdml.{name}")
    assert dir(space) == sorted(space.__all__)
    for public in space.__all__:
        assert not public.startswith("_") and not inspect.ismodule(getattr(space, public)), public


def test_tab_completion_of_the_package_and_its_settings():
    assert dir(gdml) == sorted(gdml.__all__)
    assert [name for name in dir(gdml.settings) if name.startswith("_")] == []
    assert {"cache_dir", "clear_cache", "data_dir", "list_cache", "max_layer_gb"} <= set(dir(gdml.settings))


def test_the_linter_finds_the_layers_in_order():
    # in its own process: the linter reads its configuration from the current folder
    done = run_python("import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* kept, 0 broken", done.stdout), done.stdout


def private_imports() -> list[str]:
    """Imports of an underscore module of one room by another."""
    found = []
    for file in sorted((ROOT / "src" / "gdml").rglob("*.py")):
        here = ("gdml", *file.relative_to(ROOT / "src" / "gdml").with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name.split(".") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = list(here[: -node.level]) if node.level else []
                module = [*base, *(node.module or "").split(".")] if node.module else base
                targets = [[*module, alias.name] for alias in node.names]
            else:
                continue
            for target in targets:
                # gdml._errors and the like are no room's; a private name is a module where a file stands for it
                modules = [
                    part
                    for i, part in enumerate(target)
                    if (ROOT / "src" / Path(*target[: i + 1])).with_suffix(".py").is_file()
                ]
                if (
                    len(target) > 2
                    and target[0] == "gdml"
                    and target[1] != here[1]
                    and any(m.startswith("_") for m in modules)
                    and not target[1].startswith("_")
                ):
                    found.append(f"{'.'.join(here)} imports {'.'.join(target)}")
    return found


def test_no_room_imports_another_rooms_private_modules():
    assert not private_imports()


def imported_packages() -> set[str]:
    """Packages that src imports at run time, wherever the import stands."""
    found = set()
    for file in (ROOT / "src").rglob("*.py"):
        pending = [ast.parse(file.read_text())]
        while pending:
            node = pending.pop()
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                pending += node.orelse
                continue
            pending += ast.iter_child_nodes(node)
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            found |= {name.split(".")[0] for name in names}
    return found - {"gdml"} - sys.stdlib_module_names


def test_dependencies_are_what_src_imports():
    def canonical(name: str) -> str:
        return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", name)[0]).lower()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {canonical(requirement) for requirement in project["dependencies"]}
    extras = {canonical(name) for extra in project["optional-dependencies"].values() for name in extra}
    distributions = packages_distributions()
    imported = {package: {canonical(name) for name in distributions[package]} for package in imported_packages()}
    assert {package for package, names in imported.items() if not names & (declared | extras)} == set(), "not declared"
    # the library that openslide-python loads comes in a package of its own
    assert declared - {"openslide-bin"} - set().union(*imported.values()) == set(), "declared, but not imported"


def sections(docstring: str) -> dict[str, str]:
    """Text of each section of a numpydoc docstring."""
    parts = SECTION.split(docstring)
    return {"Summary": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def documented_parameters(text: str) -> list[str]:
    """Names at the left edge of a Parameters section; one line may name several."""
    names = [name for line in text.splitlines() if line[:1].strip() for name in line.split(" : ")[0].split(",")]
    return [name.strip().lstrip("*") for name in names]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_numpydoc_docstrings(name):
    found = public_object(name)
    if not (inspect.isfunction(found) or inspect.isclass(found)):
        pytest.skip("data: documented where it is assigned")
    docstring = inspect.getdoc(found)
    assert docstring, f"gdml.{name} has no docstring"
    told = sections(docstring)
    first = told["Summary"].splitlines()[0]
    assert first.endswith("."), f"the summary of gdml.{name} is no sentence on one line: {first!r}"
    described = documented_parameters(told.get("Parameters", "") + told.get("Attributes", ""))
    if inspect.isclass(found):
        fields = getattr(found, "__dataclass_fields__", None) or inspect.signature(found).parameters
        # sorted: inherited fields may be described last
        assert not described or getattr(found, "_is_protocol", False) or sorted(described) == sorted(fields), described
        return
    # sorted: parameters that belong together may be described on one line
    assert sorted(described) == sorted(inspect.signature(found).parameters), described
    if inspect.signature(found).return_annotation not in (None, "None"):
        assert "Returns" in told, f"gdml.{name} does not say what it returns"


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="no docs beside this copy of the tests")
def test_public_names_are_in_the_api_pages():
    listed = set()
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for module, names in re.findall(
            r"currentmodule:: gdml\.?(\S*)\n(.*?)(?=\.\. current|```)", page.read_text(), re.DOTALL
        ):
            listed |= {f"{module}.{name}".lstrip(".") for name in re.findall(r"^   (\w+)$", names, re.MULTILINE)}
    assert not set(PUBLIC) - listed, "public names that no page of docs/api lists"


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    released = re.search(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation and released
    assert {project["version"], citation[1], released[1]} == {gdml.__version__}
