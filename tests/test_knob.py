"""The knob of each method, and what a point of its frontier makes of a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from law.base.errors import LawError
from law.reporting.sweep import METHODS
from law.runs.configuration import build, check_config, recorded_method
from law.runs.identity import reduced
from law.runs.knob import knob_of, turned

CONF = Path(__file__).parents[1] / "conf"
SWEPT = [
    path.stem for path in sorted((CONF / "method").glob("*.yaml")) if path.stem not in ("none", "retrained")
]


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


@pytest.mark.parametrize("method", SWEPT)
def test_every_method_names_a_knob_with_points_around_the_preset_on_a_log_scale(method: str) -> None:
    config = compose("config", overrides=[f"method={method}"])
    factors = [*config.method.knob.factors]
    assert len(factors) >= 8 and 1 in factors and factors[0] < 1 < factors[-1]
    assert all(1.3 < high / low < 2.6 for low, high in pairwise(factors))
    preset = knob_of(config)
    assert preset is not None
    lowest = knob_of(turned(compose("config", overrides=[f"method={method}", "point=0"])))
    assert lowest == {"setting": preset["setting"], "value": pytest.approx(preset["value"] * factors[0])}


@pytest.mark.parametrize(("name", "model"), [("frontier", "lab"), ("frontier_real", "smollm2-135m")])
def test_the_experiments_take_every_point_of_every_method(name: str, model: str) -> None:
    config = compose("config", overrides=[f"experiment={name}"], return_hydra_config=True)
    swept = config.hydra.sweeper.params
    assert sorted(swept.method.split(",")) == sorted({*METHODS} - {"none", "retrained"}) == SWEPT
    assert swept.seed == "0,1,2"
    points = [*map(int, swept.point.split(","))]
    told = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    assert f" {len(SWEPT) * len(points) * 3} runs" in told
    given = ["model.path=here", "dataset.path=here"] if model != "lab" else []
    for method in SWEPT:
        chosen = compose("config", overrides=[f"experiment={name}", f"method={method}", *given])
        assert points == [*range(len(chosen.method.knob.factors))]
        assert knob_of(chosen) is not None  # the model has a preset of it


def test_a_point_is_the_run_in_which_the_setting_has_that_value() -> None:
    """The preset of the lab has λ = 3,000; its first factor is 0.05."""
    config = turned(compose("config", overrides=["method=law", "point=0"]))
    assert build(config.method).initial.lam == 150.0
    typed = compose("config", overrides=["method=law", "method.initial.lam=150"])
    assert reduced(config) == reduced(typed) != reduced(compose("config", overrides=["method=law"]))
    check_config(config)
    plain = compose("config", overrides=["method=law"])
    assert turned(plain) is plain


def test_a_finished_run_is_read_with_the_value_that_it_was_made_with(tmp_path: Path) -> None:
    """Hydra records the configuration before the knob is turned."""
    (tmp_path / ".hydra").mkdir()
    for overrides, lam in ((["point=1"], 300), ([], 3000)):
        config = compose("config", overrides=["method=memit", *overrides])
        OmegaConf.save(config, tmp_path / ".hydra" / "config.yaml")
        assert recorded_method(tmp_path)["lam"] == lam


def test_a_method_is_built_without_its_knob() -> None:
    config = compose("config", overrides=["method=law"]).method
    build(config)
    assert config.knob.setting == "initial.lam" and config.initial.knob.setting == "lam"  # still there


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=memit", "point=9"], r"point is 9; expected 0 to 8, the places in method\.knob\.factors"),
        (["method=none", "point=0"], "point is 0, but the method has no knob; expected method.knob with"),
        (["method=memit", "point=0", "method.knob.setting=lamb"], r"method\.lamb, the knob, has no value"),
        (["method=memit", "point=0", "model=local", "model.path=x"], r"method\.lam, the knob, has no value"),
    ],
)
def test_a_point_that_cannot_be_taken_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(LawError, match=message):
        turned(compose("config", overrides=overrides))


def test_a_factor_out_of_range_is_refused() -> None:
    with pytest.raises(
        LawError, match=r"method.knob.factors is \[0\.0\]; expected a list of finite numbers above 0"
    ):
        check_config(compose("config", overrides=["method=memit", "method.knob.factors=[0]"]))
