"""What the package declares: its dependencies are those it imports, on every system it names."""

import ast
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
TREES = {
    path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8"))
    for top in ("align", "demo")
    for path in sorted((ROOT / top).rglob("*.py"))
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {n: x for n, x in PROJECT["optional-dependencies"].items() if n not in ("dev", "docs")}
HOMES = metadata.packages_distributions()
# Modules and members of `os` that Windows lacks, by Python's documentation.
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "termios", "tty"}
POSIX_MEMBERS = {
    *("chown", "fchmod", "fork", "forkpty", "getegid", "geteuid", "getgid", "getloadavg"),
    *("getpgid", "getuid", "killpg", "mkfifo", "nice", "sched_getaffinity", "setsid", "statvfs"),
    *("sysconf", "uname", "wait", "wait4"),
}


def names_of(lines: list[str]) -> set[str]:
    """The distributions that these requirements name, in their normal form."""
    return {canonicalize_name(Requirement(line).name) for line in lines}


def homes(module: str) -> set[str]:
    """Which installed distributions bring a module; its own name where none does."""
    return {canonicalize_name(name) for name in HOMES.get(module, [module])}


def imports(tree: ast.AST, anywhere: bool = True) -> set[str]:
    """The top names of what a module imports; not `anywhere`: of what its own import imports."""
    names, todo = set(), [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module)
        if anywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += ast.iter_child_nodes(node)
    return {name.partition(".")[0] for name in names}


def texts(tree: ast.AST) -> set[str]:
    """Every string of a module."""
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def test_what_is_imported_is_declared():
    """On import by the package, in the demo by its extra; within functions also by other extras.

    What a function imports may also be looked for first (`find_spec`), by a string of its name.
    """
    package = names_of(PROJECT["dependencies"])
    extras = names_of([line for lines in EXTRAS.values() for line in lines])
    for path, tree in TREES.items():
        always = package | (names_of(EXTRAS["demo"]) if "demo" in path.parts else set())
        for name in imports(tree) - sys.stdlib_module_names - {"align"}:
            allowed = always if name in imports(tree, anywhere=False) else always | extras
            assert homes(name) & allowed or name in texts(tree), f"{path} imports {name}"


def test_what_is_declared_is_imported():
    """Or named by the string that accelerate imports it by, as its trackers are."""
    used = {home for tree in TREES.values() for name in imports(tree) for home in homes(name)}
    named = {canonicalize_name(text) for tree in TREES.values() for text in texts(tree) if text}
    lines = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    assert not names_of(lines) - used - named


def test_nothing_that_windows_lacks_is_imported_on_the_way():
    for path, tree in TREES.items():
        members = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "os"
        }
        assert not members & POSIX_MEMBERS, path
        assert not imports(tree, anywhere=False) & POSIX_MODULES, path


def test_the_pinned_versions_are_admitted():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(n): v for n, _, v in (line.partition("==") for line in lines)}
    for line in [*PROJECT["dependencies"], *EXTRAS["demo"]]:
        requirement = Requirement(line)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), line
