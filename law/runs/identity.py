"""Which run this is: what tells it from another one, and whether it has finished already.

A run is the same run when four things are the same: the configuration without what changes no number, the content
of everything that is read, the code of this project, and the versions of the packages that compute.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import law
from law.base.cache import content_hash
from law.base.code import code_hash
from law.base.files import FileHashes
from law.base.settings import FILES, ROLE, SAME_RESULTS, contents
from law.runs.folder import MANIFEST, METRICS, damaged_results, read_object

log = logging.getLogger(__name__)

CHOICES = ("model", "dataset", "method")
NO_SETTINGS = {
    "name",
    "seed",
    "save",
    "rerun",
    "redact",
    "tracker",
    "experiment",
    "attack",
    *CHOICES,
}  # change no number, or are kept elsewhere

PACKAGES = ("torch", "transformers", "lm_eval", "datasets", "safetensors", "tokenizers", "peft")
"""The packages whose version can change a number."""

CONTENT = "(content)"
"""What a reduced configuration holds in place of the path of files that are here."""


@dataclass(frozen=True)
class Identity:
    """Which run this is: what the table groups by, and what makes it the same run again."""

    name: str  # the sweep it belongs to
    choices: Mapping[str, str]  # which model, dataset and method were chosen
    settings: Mapping[str, str]  # what the command line or the sweep set besides
    seed: int
    save: str = "nothing"  # what is kept of the washed model
    redact: bool = False  # whether the words of facts are left out
    knob: Mapping[str, Any] | None = None  # the dotted name and the value of the method's knob
    config: Mapping[str, Any] = field(default_factory=dict)  # resolved, and whole
    config_hash: str = ""  # of the reduced configuration
    setup_hash: str = ""  # of the same with the seed 0: runs of one setup share it
    code_hash: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)  # what each setting reads; ``None``: not here yet


def settings_of(overrides: Iterable[str]) -> dict[str, str]:
    """The settings among Hydra overrides: what tells runs of one model, data set, method and seed apart."""
    split = (override.lstrip("+~").partition("=") for override in overrides)
    return {
        key: value
        for key, _, value in split
        if key not in NO_SETTINGS and key.partition(".")[0] not in ("tracker", "hydra")
    }


def reduced(config: DictConfig, files: Callable[[str], Any] = lambda _: CONTENT) -> dict[str, Any]:
    """The resolved configuration without the fields that change no number (:mod:`law.base.settings`).

    ``files`` gives what stands in the place of a path to files that are here.
    """
    cls = OmegaConf.get_type(config)
    roles = {f.name: f.metadata.get(ROLE) for f in fields(cls)} if is_dataclass(cls) else {}
    found: dict[str, Any] = {}
    for key in map(str, config):
        role = roles.get(key)
        # a missing value is told when the run is built: here it would end the whole sweep
        if key == "hydra" or role == SAME_RESULTS[ROLE] or OmegaConf.is_missing(config, key):
            continue
        value = config[key]
        if isinstance(value, DictConfig):
            value = reduced(value, files)
        elif OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True, enum_to_str=True)
        elif isinstance(value, Enum):
            value = value.name
        elif role == FILES[ROLE] and value is not None and _is_here(value):
            value = files(value)
        found[key] = value
    return found


def local(path: str) -> Path:
    """A path as the settings read it, with ``~`` for the home folder."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser fails where a user is unknown


def _is_here(path: str) -> bool:
    """Whether a path, or a pattern, names files on this machine, and not something on a hub."""
    found = local(path)
    return found.exists() or any(found.parent.glob(found.name))


def inputs_of(parts: Mapping[str, Any], cache: str | None) -> dict[str, Any]:
    """The content that the parts of a run read, by dotted names; hashes of large files are remembered in ``cache``."""
    hashes = FileHashes(Path(cache) if cache else None)
    return dict(found for name, settings in parts.items() for found in contents(settings, name, hashes))


def code() -> str:
    """The hash of this project's code, without the package that only makes tables."""
    root = Path(law.__file__).parent
    return code_hash(root, (p for p in root.rglob("*.py") if p.relative_to(root).parts[0] != "reporting"))


def finished(folder: Path, identity: Identity) -> dict[str, float] | None:
    """The metrics of this very run, where it has finished in ``folder`` or beside it; otherwise ``None``.

    The log says where it has finished, or what has changed since. Beside: the same files under another path
    give another folder.
    """
    for place in (folder, *_beside(folder)):
        manifest = read_object(place / MANIFEST)
        if manifest is None and (place / MANIFEST).exists():
            log.warning("%s is damaged, so its run is made again", place / MANIFEST)
        if manifest is None or manifest.get("status") != "finished":
            continue
        changed = [*_changes(manifest, identity)]
        if changed and place == folder:
            log.info("%s has finished, and is run again with other %s", folder, ", ".join(changed))
        if changed:
            continue
        if damaged := damaged_results(place, manifest):
            log.warning("%s has finished, and is run again: damaged %s", place, ", ".join(damaged))
        elif (metrics := read_object(place / METRICS)) is not None:
            log.info("%s has finished before; rerun=true runs it again", place)
            return metrics
        else:
            log.info("%s has finished, and is run again: its metrics.json can't be read", place)
    return None


def _beside(folder: Path) -> Iterator[Path]:
    """The folders whose names differ from that of ``folder`` in the digest alone."""
    stem = folder.name.rpartition("-")[0]
    if stem and folder.parent.is_dir():
        others = (path for path in sorted(folder.parent.iterdir()) if path != folder)
        yield from (path for path in others if path.name.rpartition("-")[0] == stem)


def _changes(manifest: Mapping[str, Any], identity: Identity) -> Iterator[str]:
    """What tells a finished run from this one, in words; an older manifest that does not say differs."""
    if manifest.get("config_hash") != identity.config_hash:
        yield "configuration"
    elif manifest.get("save") != identity.save != "nothing":
        yield f"configuration (save={identity.save})"
    elif manifest.get("redact", False) != identity.redact:
        yield f"configuration (redact={str(identity.redact).lower()})"
    before = manifest.get("inputs", {})
    before = before if isinstance(before, Mapping) else {}
    now = digests(identity.inputs)
    if names := [name for name in now if now[name] is None or now[name] != before.get(name)]:
        yield f"inputs ({', '.join(names)})"
    if manifest.get("code_hash") != identity.code_hash:
        yield "code"
    then = manifest.get("versions", {})
    moved = [
        f"{name} {then.get(name)} → {version(name)}" for name in PACKAGES if then.get(name) != version(name)
    ]
    if moved:
        yield f"packages ({', '.join(moved)})"


def digests(inputs: Mapping[str, Any]) -> dict[str, str | None]:
    """The hash of each input's content, ``None`` where it is not here."""
    return {name: None if content is None else content_hash(content) for name, content in inputs.items()}
