"""What Python code does, as a hash: comments, docstrings, layout and the words of errors do not count."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def code_hash(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 of the code in ``files``, each with its place below ``root``; the order of the files does not count."""
    digest = hashlib.sha256()
    for path in sorted(files):
        tree = ast.parse(path.read_bytes(), path)
        digest.update(f"{path.relative_to(root).as_posix()} {_shape(tree)!r}\n".encode())
    return digest.hexdigest()


def _shape(node: Any) -> Any:
    """A syntax tree as nested lists. Empty fields are left out, since versions of Python differ in them."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        return ["Raise", _shape(node.exc.func)]  # no number is made of the words of an error
    if isinstance(node, ast.AST):
        named = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
        return [type(node).__name__, *((name, _shape(value)) for name, value in named)]
    if isinstance(node, list):
        return [_shape(value) for value in node if not _is_docstring(value)]
    return node


def _is_docstring(node: Any) -> bool:
    """Whether a statement is a text alone: the docstring of a module, a class, a function or a constant."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
