"""What the site is made of besides the files in ``docs/``: MkDocs calls these functions while it builds.

The home page is the README. The pages on the configuration and on the Python modules are made of the code.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from configuration_page import configuration_page
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import law

ROOT = Path(__file__).parents[2]
API = "reference/python"
"""Where the pages of the modules lie."""
COPIED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE.txt",
}
"""Files of the repository's root, and what they are called in the site."""
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> None:
    """Put the packages, in the order of a run, where the navigation names the folder ``API``."""
    for section in config.nav or []:
        for pages in section.values():
            if isinstance(pages, list) and {"Python API": API} in pages:
                pages[pages.index({"Python API": API})] = {"Python API": _sections()}


def _sections() -> list[Any]:
    """The page of ``law``, then a section for each package with a page for each of its modules."""
    sections: list[Any] = [f"{API}/index.md"]
    for package in re.findall(r"^``(\w+)``", law.__doc__ or "", re.MULTILINE):
        modules = sorted(path.stem for path in (ROOT / "law" / package).glob("*.py"))
        modules.remove("__init__")
        pages = [{name: f"{API}/{package}/{name}.md"} for name in modules]
        sections.append({package: [f"{API}/{package}/index.md", *pages]})
    return sections


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that no file in ``docs/`` holds."""
    for source, page in COPIED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_links_of_the_site(text)))
    files.append(File.generated(config, "reference/configuration.md", content=configuration_page()))
    for page in _paths(_sections()):
        module = page.replace(API, "law").replace("/index.md", "").removesuffix(".md").replace("/", ".")
        files.append(File.generated(config, page, content=f"::: {module}\n"))


def _paths(navigation: Any) -> list[str]:
    """The pages of a navigation, however deep they lie."""
    if isinstance(navigation, str):
        return [navigation]
    inner = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for one in inner for page in _paths(one)]


def _links_of_the_site(text: str) -> str:
    """Links of a file in the root, as a page in ``docs/`` has them."""
    for source, page in COPIED.items():
        text = text.replace(f"]({source})", f"]({page})")
    return text.replace("](docs/", "](").replace('src="docs/', 'src="')


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers show without a script."""

    def formula(found: re.Match[str]) -> str:
        tag, latex = found.groups()
        latex = html.unescape(latex).strip()
        if tag == "span":
            return convert(latex)
        return f'<div class="formula">{convert(latex, display="block")}</div>'

    return FORMULA.sub(formula, content)
