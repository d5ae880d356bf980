"""Published files: fetched once, checked and kept; and what every data set's configuration takes."""

from __future__ import annotations

import hashlib
import http.server
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from records import write, zsre

from law.base.errors import LawError
from law.facts.counterfact import CounterFact, Selection
from law.facts.custom import Custom
from law.facts.download import Download
from law.facts.source import FactSource, Part
from law.facts.wiki_latest import WikiLatest
from law.facts.zsre import ZsRE
from law.runs.configuration import build

ROOT = Path(__file__).parents[1]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A site on this machine, and the folder that it serves."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None: ...

        def do_GET(self) -> None:
            if not self.path.endswith("short.json"):
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"[")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def test_a_published_file_is_fetched_once(
    site: tuple[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address, folder = site
    published = write(folder / "zsre_mend_eval.json", [zsre()])
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    source = ZsRE(None, download=Download(address, str(tmp_path / "kept")))
    assert [fact.object for fact in source.load().wash] == ["Paris"]
    assert digest in caplog.text and "no hash of it is known" in caplog.text
    published.unlink()
    assert [fact.object for fact in source.load().wash] == ["Paris"]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["zsre_mend_eval.json"]


def test_the_selection_says_which_file_is_fetched(site: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = site
    rewrite = {"prompt": "{} is", "relation_id": "P1", "subject": "A"}
    records = [
        {
            "case_id": n,
            "requested_rewrite": rewrite | {"target_true": {"str": str(n)}},
            "paraphrase_prompts": [],
        }
        for n in range(3)
    ]
    write(folder / "counterfact.json", records)
    write(folder / "multi_counterfact.json", records[:2])  # taken whole, contradiction or not
    download = Download(address, str(tmp_path / "kept"))
    assert len(CounterFact(None, download=download).load().wash) == 3
    assert len(CounterFact(None, selection=Selection.multi, download=download).load().wash) == 2


def test_a_promised_hash_is_checked(
    site: tuple[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address, folder = site
    digest = hashlib.sha256(write(folder / "z.json", [zsre()]).read_bytes()).hexdigest()
    kept = tmp_path / "kept"
    with pytest.raises(LawError, match=f"What came from {address}/z.json has SHA-256 {digest}; expected 00"):
        Download(address, str(kept), "00").get("z.json")
    assert list(kept.iterdir()) == []
    path = Download(address, str(kept), digest.upper()).get("z.json")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    path.write_text("[]")
    with pytest.raises(LawError, match=r"kept/z.json, fetched before, has SHA-256 .* Remove it"):
        Download(address, str(kept), digest).get("z.json")


@pytest.mark.parametrize("name", ["absent.json", "short.json"])
def test_a_file_that_cannot_be_fetched(site: tuple[str, Path], tmp_path: Path, name: str) -> None:
    kept = tmp_path / "kept"
    message = (
        rf"{name} is not in .*kept and could not be fetched from {site[0]}/{name} .*set dataset.path to it"
    )
    with pytest.raises(LawError, match=message):
        Download(site[0], str(kept)).get(name)
    assert list(kept.iterdir()) == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense", "file:///no/such/folder"])
def test_a_site_that_does_not_answer(tmp_path: Path, address: str) -> None:
    with pytest.raises(LawError, match=f"could not be fetched from {address}/z.json"):
        Download(address, str(tmp_path)).get("z.json")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LawError, match=r"z.json is not in .*file/kept"):
        Download("file:///", str(tmp_path / "file" / "kept")).get("z.json")


@pytest.mark.parametrize(
    ("source", "mend"), [(WikiLatest(None), "build_wiki.py"), (Custom(None), "a table with a header")]
)
def test_what_is_not_published_needs_a_path(source: FactSource, mend: str) -> None:
    with pytest.raises(LawError, match=r"dataset\.path is not set.*") as error:
        source.load()
    assert mend in str(error.value)


# the configuration


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["dataset=counterfact"], {"path": None, "wash": None, "keep": None, "selection": Selection.multi}),
        (["dataset=zsre", "dataset.wash=5"], {"path": None, "wash": 5, "keep": None}),
        (["dataset=wiki_latest", "dataset.relations=[spouse]"], {"path": None, "relations": ["spouse"]}),
        (["dataset=custom", "dataset.path=facts.csv", "seed=3"], {"path": "facts.csv", "seed": 3}),
        (["dataset=lab"], {"wash": 200, "keep": 200, "part": Part.test, "selection": Selection.all}),
    ],
)
def test_options(overrides: list[str], expected: dict[str, Any]) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        source = build(compose("config", overrides=overrides).dataset)
    assert isinstance(source, FactSource)
    assert {name: getattr(source, name) for name in expected} == expected
    if isinstance(source, CounterFact | ZsRE):
        assert source.download == Download()
