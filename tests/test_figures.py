"""Pictures of run folders that the test writes: what is drawn is read back from the figure."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from law.base.errors import LawError
from law.reporting.attack_picture import plot_attacks
from law.reporting.loading import load_sweep
from law.reporting.pictures import PICTURES, Picture, facts_left, plot_facts_left, plot_setting
from law.reporting.tradeoff import plot_tradeoff
from law.runs.configuration import build

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "experiments" / "figure.py"
LAYERS = [{"layer": 3, "lambda": 1.0}, {"ascent/layer_3": 2.0}]


def save(
    folder: Path,
    metrics: dict[str, float],
    seed: int = 0,
    method: str = "law",
    dataset: str = "lab",
    settings: dict[str, str] | None = None,
    left: dict[int, int] | None = None,
) -> None:
    """A finished run; ``left`` is what its method told of the facts left after each layer."""
    run = folder / f"{len([*folder.glob('*')]):02d}"
    run.mkdir(parents=True)
    choices = {"model": "lab", "dataset": dataset, "method": method}
    manifest = {"status": "finished", "settings": settings or {}, "choices": choices, "seed": seed}
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "metrics.json").write_text(json.dumps({"facts/known": 20, **metrics}))
    rows = [*LAYERS, *({"layer": layer, "facts_left": count} for layer, count in (left or {}).items())]
    (run / "method.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were written, which are written all the same."""
    figures = []
    write = Figure.savefig

    def savefig(figure: Figure, path: Path, **options: object) -> None:
        figures.append(figure)
        write(figure, path, **options)
        assert path.read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two seeds of two methods at 50 and 200 facts, and one run at 400."""
    folder = tmp_path / "washed_facts"
    before = {"reasoning/mean_before": 0.8, "forget/accuracy_before": 1.0}
    for wash, forget, reasoning in (("200", 0.2, 0.7), ("50", 0.1, 0.8)):
        for seed, shift in enumerate((-0.01, 0.01)):
            metrics = {"forget/accuracy": forget + shift, "reasoning/mean": reasoning + 2 * shift}
            save(folder, before | metrics, seed, settings={"dataset.wash": wash})
            save(folder, before | {"forget/accuracy": 0.5}, seed, "memit", settings={"dataset.wash": wash})
    one = {"forget/accuracy": 0.4, "forget/accuracy_stderr": 0.03, "reasoning/mean": 0.5}
    save(folder, before | one, settings={"dataset.wash": "400"})
    return folder


def lines(axes) -> dict[str, tuple[list[float], list[float], list[float]]]:
    """Of each error bar by its colour: x, y and half the bar."""
    found = {}
    for container in axes.containers:
        line, _, (bars,) = container.lines
        halves = [(high[1] - low[1]) / 2 for low, high in bars.get_segments()]
        found[line.get_color()] = ([*line.get_xdata()], [*line.get_ydata()], halves)
    return found


def test_metrics_against_a_number(folder: Path, drawn: list[Figure]) -> None:
    plot_setting(load_sweep(folder), PICTURES["washed_facts"], folder / "x.png")
    (figure,) = drawn
    forget, reasoning = figure.axes  # paraphrases and kept facts were not measured
    assert forget.get_xlabel() == "facts to wash"
    assert forget.get_ylabel() == "forget acc. (%), lower is better"
    assert reasoning.get_ylabel() == "reasoning (%), higher is better"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["law", "memit", "before washing"]
    law, memit = lines(forget).values()
    # seeds at 9 and 11 %, 19 and 21 %: deviations of 1 each, so a sample deviation of √2; one run's own error
    assert law[0] == [50, 200, 400]
    assert law[1] == pytest.approx([10, 20, 40])
    assert law[2] == pytest.approx([2**0.5, 2**0.5, 3])
    assert memit == ([50, 200], pytest.approx([50, 50]), pytest.approx([0, 0]))
    (only,) = lines(reasoning).values()
    assert only[1] == pytest.approx([80, 70, 50])
    assert only[2] == pytest.approx([8**0.5, 8**0.5, 0])  # the single run reports no standard error
    assert [*reasoning.lines[0].get_ydata()] == pytest.approx([80, 80])
    assert "mean of 2 runs" in figure.get_suptitle() and "standard error" in figure.get_suptitle()
    assert forget.get_xscale() == "linear"


def test_words_stand_side_by_side_and_data_sets_are_told_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    for start, value in (("random", 0.5), ("memit", 0.25)):
        for dataset in ("lab", "zsre"):
            settings = {"method.start": start}
            save(
                tmp_path,
                {"forget/accuracy": value, "forget/accuracy_stderr": 0.01},
                0,
                "law",
                dataset,
                settings,
            )
    plot_setting(load_sweep(tmp_path), PICTURES["initialisation"], tmp_path / "x.png")
    (figure,) = drawn
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["memit", "random"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lab, lab: law", "lab, zsre: law"]
    for x, y, bars in lines(axes).values():
        assert (x, y, bars) == ([0, 1], pytest.approx([25, 50]), pytest.approx([1, 1]))
    assert all(line.lines[0].get_linestyle() == "None" for line in axes.containers)


def test_a_wide_range_is_logarithmic_and_small_differences_do_not_fill_the_axis(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    for rate, value in (("1e-06", 0.500), ("0.001", 0.501)):
        save(tmp_path, {"retain/accuracy": value}, settings={"method.learning_rate": rate})
    picture = Picture("method.learning_rate", "learning rate")
    plot_setting(load_sweep(tmp_path), picture, tmp_path / "x.png")
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "log"
    low, high = axes.get_ylim()
    assert high - low == pytest.approx(10) and low < 50 < high


def test_facts_left_after_each_layer(tmp_path: Path, drawn: list[Figure]) -> None:
    """Of 20 facts 10 and 6 are left after layer 3, 2 and none after layer 4; the second run stops there."""
    save(tmp_path, {}, 0, left={3: 10, 4: 2, 5: 1})
    save(tmp_path, {}, 1, left={3: 6, 4: 0})
    save(tmp_path, {}, 0, "memit")
    sweep = load_sweep(tmp_path)
    plot_facts_left(sweep, tmp_path / "x.png")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["before", "3", "4", "5"]
    ((_, y, bars),) = lines(axes).values()
    assert y == pytest.approx([100, 40, 5, 2.5])
    assert bars == pytest.approx([0, 200**0.5, 50**0.5, 12.5**0.5])
    assert facts_left(sweep.runs[0].folder) == {3: 10, 4: 2, 5: 1}
    assert facts_left(tmp_path / "nowhere") == {}


def test_the_tradeoff_against_kept_facts_and_against_reasoning(tmp_path: Path, drawn: list[Figure]) -> None:
    """A mark for each setup: of two runs their mean and deviation, of one run its standard error."""
    before = {"reasoning/mean_before": 0.9, "retain/accuracy_before": 1.0}
    for seed, shift in enumerate((-0.01, 0.01)):
        metrics = {"forget/accuracy": 0.2 + shift, "retain/accuracy": 0.7 + 2 * shift, "reasoning/mean": 0.8}
        save(tmp_path, before | metrics, seed)
    metrics = {"forget/accuracy": 0.4, "retain/accuracy": 0.9, "reasoning/mean": 0.85}
    save(tmp_path, before | metrics | {f"{key}_stderr": 0.03 for key in metrics}, 0, "memit")
    save(
        tmp_path, before | {"forget/accuracy": 1.0, "retain/accuracy": 1.0, "reasoning/mean": 0.9}, 0, "none"
    )
    plot_tradeoff(load_sweep(tmp_path), tmp_path / "x.png")
    (figure,) = drawn
    kept, reasoning = figure.axes
    assert kept.get_xlabel() == reasoning.get_xlabel() == "washed facts forgotten (%)"
    assert kept.get_ylabel() == "other facts kept (%)"
    law, memit = marks(kept)
    assert law == pytest.approx((80, 70, 2**0.5, 8**0.5)) and memit == pytest.approx((60, 90, 3, 3))
    law, memit = marks(reasoning)
    assert law == pytest.approx((80, 80, 2**0.5, 0)) and memit == pytest.approx((60, 85, 3, 3))
    for axes, unwashed in ((kept, 100), (reasoning, 90)):
        points = [tuple(*collection.get_offsets().tolist()) for collection in axes.collections[-2:]]
        assert points == [(0, pytest.approx(unwashed)), (100, pytest.approx(unwashed))]
        assert axes.get_ylim()[1] <= 105
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["law", "memit", "unwashed model", "ideal"]


def test_attacks_side_by_side_with_the_unwashed_model_and_what_guessing_gives(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    """Places 0 and 1 are the washed prompt and the attack; the marks of two methods take 0.7 of the room between them."""
    key = "attack/refusal/recalled"
    for method, left, recovered in (("law", 0.1, 0.6), ("memit", 0.2, 0.5)):
        metrics = {
            "forget/accuracy": left,
            "forget/accuracy_before": 1.0,
            key: recovered,
            f"{key}_before": 0.9,
        }
        stderr = {"forget/accuracy_stderr": 0.03, f"{key}_stderr": 0.05, f"{key}_control": 0.02}
        save(tmp_path, metrics | stderr, method=method)
    plot_attacks(load_sweep(tmp_path), tmp_path / "x.png")
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["asked as\nwashed", "refusal"]
    found = sorted(marks(axes))
    assert found == [
        pytest.approx(mark)
        for mark in [(-0.175, 10, 3), (0.175, 20, 3), (1 - 0.175, 60, 5), (1 + 0.175, 50, 5)]
    ]
    pentagons = [each for each in axes.collections if isinstance(each, PathCollection)]
    assert [tuple(*each.get_offsets().tolist()) for each in pentagons] == [(0, 100), (1, 90)]
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == ["law", "memit", "unwashed model", "facts that nobody knew"]


def test_a_sweep_without_attacks_has_no_picture_of_them(tmp_path: Path) -> None:
    save(tmp_path, {"forget/accuracy": 0.5})
    with pytest.raises(LawError, match=r"was attacked; expected some with attack=quick"):
        plot_attacks(load_sweep(tmp_path), tmp_path / "x.png")


def marks(axes: Axes) -> list[tuple[float, ...]]:
    """Of each mark: x, y and half the length of both bars."""
    found = []
    for container in axes.containers:
        line, _, bars = container.lines
        halves = [(ends[1] - ends[0]).max() / 2 for ends in (bar.get_segments()[0] for bar in bars)]
        found.append((line.get_xdata()[0], line.get_ydata()[0], *halves))
    return found


def test_a_long_legend_does_not_squeeze_the_axes(tmp_path: Path, drawn: list[Figure]) -> None:
    """Forty setups with long names: the axes keep the height that they have beside two."""
    for number in range(40):
        settings = {"method.initial.moments.text": f"a/long/path/to/some/text/{number}.txt"}
        save(tmp_path, {"forget/accuracy": number / 40, "retain/accuracy": 0.5}, settings=settings)
        if number == 1:
            plot_tradeoff(load_sweep(tmp_path), tmp_path / "x.png")
    plot_tradeoff(load_sweep(tmp_path), tmp_path / "x.png")
    few, many = (figure.axes[0].get_position().height * figure.get_figheight() for figure in drawn)
    assert many >= 0.95 * few
    longest = max(
        len(line) for text in drawn[1].legends[0].get_texts() for line in text.get_text().splitlines()
    )
    assert longest <= 46


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    save(tmp_path, {"forget/accuracy": 0.5}, settings={"dataset.wash": "50"})
    with pytest.raises(LawError, match=r"have 1 values of dataset\.wash; expected two or more"):
        plot_setting(load_sweep(tmp_path), PICTURES["washed_facts"], tmp_path / "x.png")
    save(tmp_path, {}, settings={"dataset.wash": "100"})
    with pytest.raises(LawError, match="No finished run reports any of fluency/entropy"):
        picture = Picture("dataset.wash", "facts", ("fluency/entropy",))
        plot_setting(load_sweep(tmp_path), picture, tmp_path / "x.png")
    with pytest.raises(LawError, match="expected runs of LAW"):
        plot_facts_left(load_sweep(tmp_path), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def execute(monkeypatch: pytest.MonkeyPatch, what: str, folder: Path) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), what, str(folder)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_script(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], drawn: list[Figure]
) -> None:
    for what in ("washed_facts", "dataset.wash"):
        execute(monkeypatch, what, folder)
        assert capsys.readouterr().out == f"Wrote {folder / f'{what}.png'}.\n"
        assert (folder / f"{what}.png").exists()
    for what, problem in (("washed", "no picture 'washed'"), ("facts_left", "expected runs of LAW")):
        with pytest.raises(SystemExit, match=problem):
            execute(monkeypatch, what, folder)


@pytest.mark.parametrize("name", PICTURES)
def test_the_experiment_sweeps_what_its_picture_shows(name: str) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        config = compose("config", overrides=[f"experiment={name}"], return_hydra_config=True)
        swept = config.hydra.sweeper.params
        assert swept.seed == "0,1,2"
        values = swept[PICTURES[name].setting].split(",")
        assert len(values) > 1
        one = f"{PICTURES[name].setting}={values[-1]}"
        build(compose("config", overrides=[f"experiment={name}", one]).method)


def test_the_papers_sweep_runs_on_the_lab() -> None:
    """Every method of ``experiment=paper model=lab dataset=lab`` composes and builds."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        config = compose("config", overrides=["experiment=paper"], return_hydra_config=True)
        methods = config.hydra.sweeper.params.method.split(",")
        assert len(methods) == 14
        for method in methods:
            overrides = ["experiment=paper", "model=lab", "dataset=lab", f"method={method}"]
            chosen = compose("config", overrides=overrides)
            assert chosen.evaluation.reasoning.tasks[0] == "lab_rank"
            build(chosen.method)


@pytest.mark.parametrize(
    ("dataset", "keep"), [("zsre", 1000), ("counterfact", 1000), ("wiki_latest", 1000), ("lab", 200)]
)
def test_the_papers_sweep_keeps_facts_of_every_data_set(dataset: str, keep: int | None) -> None:
    """Without kept facts nothing tells what washing takes besides."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        overrides = ["experiment=paper", "model=lab", f"dataset={dataset}"]
        assert compose("config", overrides=overrides).dataset.keep == keep
        assert compose("config", overrides=[*overrides, "dataset.keep=0"]).dataset.keep == 0
        alone = compose("config", overrides=[f"dataset={dataset}"]).dataset
        assert alone.keep == (200 if dataset == "lab" else None)
