"""Published files: fetched once, checked where their hash is known, and kept."""

from __future__ import annotations

import http.client
import logging
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from law.base.errors import LawError
from law.base.files import file_hash, replacing

log = logging.getLogger(__name__)

TIMEOUT_S = 60  # without a byte


@dataclass
class Download:
    """Where a published file comes from, and where it is kept.

    Args:
        site: the address of the folder that holds the file.
        folder: the folder where the file is kept; it is created when it is missing.
        sha256: its SHA-256, in hexadecimal. ``null``: not known; the log then says which was seen.
    """

    site: str = "https://memit.baulab.info/data/dsets"
    folder: str = "outputs/datasets"
    sha256: str | None = None

    def get(self, name: str) -> Path:
        """The kept file ``name``, fetched when it is not there yet.

        Raises:
            LawError: it can't be fetched or kept, or is not the file that ``sha256`` promises.
        """
        path = Path(self.folder).expanduser() / name
        if path.is_file():
            self._check(path, f"{path}, fetched before,", "Remove it to fetch it again")
            return path
        address = f"{self.site.rstrip('/')}/{name}"
        log.info("fetching %s to %s", address, path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                _fetch(address, partial)
                self._check(
                    partial, f"What came from {address}", "Try again, or another dataset.download.site"
                )
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise LawError(
                f"{name} is not in {path.parent} and could not be fetched from {address} ({error}). Expected "
                "that address to answer. Fetch the file by other means and set dataset.path to it, or set "
                "dataset.download.site to a mirror."
            ) from error
        if self.sha256 is None:
            log.warning(
                "%s is not checked, since no hash of it is known. What came from %s has SHA-256 %s; set "
                "dataset.download.sha256 to it to make sure of the same file elsewhere.",
                path,
                address,
                file_hash(path),
            )
        return path

    def _check(self, path: Path, what: str, mend: str) -> None:
        """Raise if a hash is promised and this file has another."""
        if self.sha256 is not None and (digest := file_hash(path)) != self.sha256.lower():
            raise LawError(
                f"{what} has SHA-256 {digest}; expected {self.sha256}. {mend}, or mend dataset.download.sha256."
            )


def _fetch(address: str, path: Path) -> None:
    """Write what lies at an address to a file."""
    with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)
        promised = answer.headers["Content-Length"]
    # a connection that breaks off looks like the end of the file
    if promised is not None and path.stat().st_size != int(promised):
        raise OSError(f"it broke off after {path.stat().st_size} of {promised} bytes")
