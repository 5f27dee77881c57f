"""Pages of the site that are made from the program itself, and links to files outside ``docs/``.

mkdocs calls the ``on_...`` functions. The reference lists what the packages call public, so that no name is missing.
"""

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "records"
_OUTSIDE = {"../CONTRIBUTING.md": "contributing.md", "../CHANGELOG.md": "changelog.md", "../README.md": "index.md"}
_FETCHED = re.compile(r"""(?:<(?:script|img|iframe)[^>]+src|"""
                      r"""<link[^>]+rel="(?:stylesheet|preload|preconnect|icon)"[^>]*"""
                      r"""href)=["']?(?:https?:)?//""")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every public module into the table of contents."""
    reference = next(part["Reference"] for part in config.nav or [] if "Reference" in part)
    place = next(i for i, item in enumerate(reference) if "Modules" in item)
    reference[place] = {"Python": [
        {"All modules": "reference/modules.md"}, {"nonlin": "reference/nonlin.md"},
        *({f"nonlin.{name}": f"reference/{name}.md"} for name in modules())]}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages made here, and the records that pages link to."""
    pages = {"reference/command-line.md": command_line(), "reference/nonlin.md": package("nonlin"),
             "reference/activations.md": activations(), "decisions.md": decisions(),
             "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
             "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")}
    names = modules()
    pages |= {f"reference/{name}.md": package(f"nonlin.{name}") for name in names}
    pages["reference/modules.md"] = module_table(names)
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    for record in sorted(RECORDS.glob("*.json")):
        files.append(File.generated(config, f"records/{record.name}", abs_src_path=str(record)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave ``docs/`` to their copies on the site."""
    up = "../" * page.file.src_uri.count("/")
    for outside, inside in _OUTSIDE.items():
        markdown = markdown.replace(f"]({up}{outside}", f"]({up}{inside}")
    if page.file.src_uri in ("contributing.md", "changelog.md"):
        markdown = markdown.replace("](docs/", "](").replace("](CHANGELOG.md", "](changelog.md")
        markdown = markdown.replace("](benchmarks/records/", "](records/")
    return markdown.replace(f"]({up}../benchmarks/records/", f"]({up}records/")


def modules() -> list[str]:
    """Return the public modules of nonlin, but the errors, which stand with the names of nonlin itself."""
    nonlin = importlib.import_module("nonlin")
    return [name for name in sorted(nonlin._MODULES) if name != "errors"]


def public(name: str) -> list[tuple[str, Any]]:
    """Return the public names of a package with what they stand for, modules left out."""
    found = importlib.import_module(name)
    pairs = [(key, getattr(found, key)) for key in getattr(found, "__all__", ()) if not key.startswith("__")]
    return [(key, value) for key, value in pairs if not inspect.ismodule(value)]


def home(package_name: str, key: str, value: Any) -> str:
    """Return the dotted path where a public name is defined."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return f"{module}.{name}" if module and name else f"{package_name}.{key}"


def package(name: str) -> str:
    """Return the reference page of a package: its docstring, then every public name."""
    from tools.docstrings import as_markdown

    found = importlib.import_module(name)
    lines = [f"# {name}", "", as_markdown(inspect.cleandoc(found.__doc__ or "")), ""]
    names = public(name)
    if name == "nonlin.functional":
        names = [(key, getattr(found, key)) for key in ("activation", "packed")]
        lines += ["Each name of the [catalog](activations.md) is a function here; a gated one also has `_packed`.", ""]
    for key, value in names:
        lines += [f"::: {home(name, key, value)}", ""]
    return "\n".join(lines)


def module_table(names: list[str]) -> str:
    """Return a table of the public modules with the first sentence of each."""
    rows = []
    for name in names:
        text = inspect.cleandoc(importlib.import_module(f"nonlin.{name}").__doc__ or "").split("\n\n")[0]
        listed = ", ".join(f"`{key}`" for key, _ in public(f"nonlin.{name}"))
        rows.append(f"| [`nonlin.{name}`]({name}.md) | {' '.join(text.split()).replace('``', '`')} | {listed} |")
    return "\n".join(["# Modules", "", "| module | about | public names |", "| --- | --- | --- |", *rows, ""])


def activations() -> str:
    """Return the catalog as a table."""
    from nonlin.functions import get, names

    rows = []
    for name in names():
        d = get(name)
        formula = d.formula.replace("|", "\\|").replace("`", "")
        also = ", ".join(f"`{alias}`" for alias in d.aliases)
        rows.append(f"| `{name}` | {d.kind} | `{formula}` | {', '.join(d.used_by)} | {also} | {d.source} |")
    head = ["# Activations", "", "`nonlin show NAME` prints one with its derivative, its properties and a plot; "
            "`nonlin show --html` writes a page to look at all of them.", "",
            "| name | kind | formula | used by | also called | source |", "| --- | --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *rows, ""])


def command_line() -> str:
    """Return what every command's ``--help`` prints."""
    from nonlin.cli import program

    context = click.Context(program, info_name="nonlin", max_content_width=80, terminal_width=80)
    parts = ["# Command line", "", "```text", program.get_help(context), "```", ""]
    for name in program.list_commands(context):
        command = program.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context, max_content_width=80, terminal_width=80)
        parts += [f"## nonlin {name}", "", "```text", command.get_help(inner), "```", ""]
    return "\n".join(parts)


def decisions() -> str:
    """Return the list of decisions, by number, with their titles."""
    rows = []
    for path in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
        title = re.sub(r"^#\s*(\d+\s*[:.]?\s*)?", "", path.read_text(encoding="utf-8").splitlines()[0])
        rows.append(f"| {path.name[:4]} | [{title}](decisions/{path.name}) |")
    return "\n".join(["# Decisions", "", "Why things are as they are, with the alternatives that were rejected.", "",
                      "| | |", "| --- | --- |", *rows, ""])


def on_post_build(config: MkDocsConfig) -> None:
    """Fail where a page would fetch something from a network."""
    bad = [str(path) for path in Path(config.site_dir).rglob("*.html") if _FETCHED.search(path.read_text("utf-8"))]
    if bad:
        raise SystemExit(f"pages that fetch from a network: {json.dumps(bad)}")
