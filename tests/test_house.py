"""The rules of the house: no circles of imports, no repeated names, sizes that fit a screen, tests that mirror."""

import ast
import re
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "nonlin"
SOURCES = sorted(path for path in PACKAGE.rglob("*") if path.suffix in {".py", ".h", ".cpp"})
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LINES, SCREEN = 450, 60


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the groups of modules that reach each other."""
    def reached(start: str) -> set[str]:
        found, left = set(), [start]
        while left:
            for name in graph[left.pop()] - found:
                found.add(name)
                left.append(name)
        return found

    reach = {name: reached(name) for name in graph}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return sorted((set(group) for group in groups if group), key=sorted)


def test_no_module_imports_itself_through_others():
    """Imports inside functions count; those for type checkers alone do not. ``nonlin`` itself loads on first use."""
    made = grimp.build_graph("nonlin", exclude_type_checking_imports=True, cache_dir=None)
    graph = {name: made.find_modules_directly_imported_by(name) - {"nonlin"} for name in made.modules - {"nonlin"}}
    assert len(graph) > 250 and circles(graph) == []
    assert circles({"a": {"b"}, "b": {"a", "c"}, "c": set()}) == [{"a", "b"}]


def test_no_contract_ignores_an_import():
    assert "ignore_imports" not in (ROOT / "pyproject.toml").read_text()


def repeats(path: Path) -> bool:
    """Whether a file's name is its folder's, in one or many, alone or before or after a line."""
    stem, folder = path.stem.removeprefix("test_"), path.parent.name.rstrip("s")
    return any(stem in (f"{folder}{end}",) or stem.startswith(f"{folder}{end}_") or stem.endswith(f"_{folder}{end}")
               for end in ("", "s"))


def test_no_file_repeats_its_folder():
    spared = {"language_model.py", "test_language_model.py"}  # "language" alone would be another thing
    assert [path for path in [*SOURCES, *TESTS] if repeats(path) and path.name not in spared] == []
    assert repeats(Path("study/study.py")) and repeats(Path("kernels/kernel_build.py"))
    assert not repeats(Path("data/dataset.py"))


def too_long(path: Path) -> list[str]:
    """Return what outgrows its size in a file: itself, or functions of it, docstrings not counted."""
    text = path.read_text(encoding="utf-8")
    found = [path.name] if len(text.splitlines()) > LINES else []
    for node in ast.walk(ast.parse(text)) if path.suffix == ".py" else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            if (node.end_lineno or 0) - first.lineno >= SCREEN:
                found.append(f"{path.name}: {node.name}")
    return found


def test_files_and_functions_fit(tmp_path):
    """CONTRIBUTING.md says about 400 lines, and a screen."""
    assert [name for path in SOURCES for name in too_long(path)] == []
    (tmp_path / "long.py").write_text("def f():\n" + "    x = 1\n" * LINES)
    assert too_long(tmp_path / "long.py") == ["long.py", "long.py: f"]


def test_tests_lie_in_the_folders_of_what_they_test():
    folders = {path.parent.relative_to(ROOT / "tests") for path in TESTS}
    assert [folder for folder in folders if not (PACKAGE / folder).is_dir()] == []


def test_tests_import_each_other_as_a_package():
    """No search path is edited, and no module is loaded from its file."""
    bad = ("sys.path." + "insert", "sys.path." + "append", "spec_from_" + "file_location")
    assert [(path, word) for path in TESTS for word in bad if word in path.read_text(encoding="utf-8")] == []


def test_commands_that_may_be_copied_quote_the_folder():
    """A folder may be called "my study": the command printed for it must be one that a shell takes."""
    told = re.compile(r"nonlin [a-z-]+(?: --[a-z]+)* \{(?!quoted\()[^}]*(?:directory|folder|study|where)[^}]*\}")
    found = [f"{path.name}: {match}" for path in SOURCES if path.suffix == ".py"
             for match in told.findall(path.read_text(encoding="utf-8"))]
    assert found == []


def test_no_line_of_a_page_begins_with_a_per_cent_sign():
    templates = list(PACKAGE.rglob("*.html"))
    assert templates and [(path.name, match) for path in templates
                          for match in re.findall(r".{0,20}(?:\d|\}\}) %[^}]", path.read_text(encoding="utf-8"))] == []
