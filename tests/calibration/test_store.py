"""What ships can be read, and is what the measurements give."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from moeplan.calibration.calibrate import calibrate
from moeplan.calibration.points import points_of
from moeplan.calibration.predict import predict, write_predicted
from moeplan.calibration.reader import read_points
from moeplan.calibration.store import bias_sentence, calibration, names, save
from moeplan.errors import UserError


@pytest.mark.parametrize("name", names())
def test_every_shipped_calibration_is_complete(name):
    found = calibration(name)
    assert found.name == name
    assert found.source
    assert found.date
    for kind, fit in found.fits.items():
        assert fit.constants.keys() == fit.model.constants.keys(), kind
        if fit.origin == "measured":
            assert fit.points > 10 * len(fit.constants)
            assert fit.errors[-1].regime == "all"
            assert fit.ranges
        else:
            assert fit.note
        for constant, value in fit.constants.items():
            bounds = fit.model.constants[constant]
            assert bounds.low < value < bounds.high, constant


def test_fitted_rates_are_below_the_datasheet():
    moe, gemm = calibration("h200-vllm-triton").fits["moe"], calibration("h200-cublas").fits["gemm"]
    assert 3.8e12 < moe.constants["read_bandwidth"] < 4.8e12
    assert 3.8e12 < gemm.constants["read_bandwidth"] < 4.8e12
    assert 790e12 < gemm.constants["matrix_rate"] < 989e12


def test_a_calibration_survives_its_file(tmp_path):
    found = calibration("h200-cublas").renamed("mine")
    save(found, tmp_path / "mine.json")
    again = calibration(str(tmp_path / "mine.json"))
    assert again.fits["gemm"].constants == pytest.approx(found.fits["gemm"].constants)
    assert again.fits["gemm"].errors == found.fits["gemm"].errors
    points = points_of("gemm", m=[1, 100], n=4096, k=4096)
    assert predict(points, again).upper.tolist() == pytest.approx(
        predict(points, found).upper.tolist()
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not a calibration"), ("[]", "schema is None"), ('{"schema": 99}', "reads 1"),
     ('{"schema": 1}', "not a complete")],
)  # fmt: skip
def test_a_bad_file_is_refused(tmp_path, text, said):
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        calibration(str(file))


def test_constants_of_another_version_are_refused(tmp_path):
    data = calibration("h200-cublas").as_dict()
    data["fits"]["gemm"]["constants"]["warp"] = {"value": 1}
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="warp"):
        calibration(str(tmp_path / "x.json"))


def test_unknown_names_and_kinds_are_refused():
    with pytest.raises(UserError, match="did you mean 'h200-cublas'"):
        calibration("h200-cubla")
    with pytest.raises(UserError, match="kind 'gemm', only for moe"):
        predict(points_of("gemm", m=1, n=512, k=512), calibration("h200-vllm-triton"))


def test_a_regime_without_errors_takes_the_band_of_all_points():
    fit = calibration("h200-cublas").fits["gemm"]
    assert fit.band("never heard of") == fit.band("all")
    low, high = fit.band("all")
    wide = replace(fit, widen=2.0).band("all")
    assert wide == (low**2, high**2)


def test_predictions_are_written_as_csv_and_json(tmp_path):
    points = points_of("gemm", m=[1, 100], n=4096, k=4096, seconds=[2e-5, 3e-5])
    found = predict(points, calibration("h200-cublas"))
    for form in ("csv", "json"):
        with (tmp_path / f"out.{form}").open("w") as file:
            write_predicted(points, found, file, form)
    header, first, *_ = (tmp_path / "out.csv").read_text().splitlines()
    assert header == "m,n,k,lower_ms,expected_ms,upper_ms,band,outside,origin,measured_ms"
    row = json.loads((tmp_path / "out.json").read_text())[0]
    assert first.split(",")[4] == str(row["expected_ms"])
    assert row["lower_ms"] < row["expected_ms"] < row["upper_ms"]
    assert row["measured_ms"] == 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"),
    [("h200-vllm-triton", "h200_moe_vllm024_bf16.csv"), ("h200-cublas", "h200_gemm_bf16.csv")],
)
def test_shipped_constants_are_what_the_measurements_give(shared, name, file):
    shipped = calibration(name)
    again = calibrate(read_points(shared / "data" / file), shipped.backend, "h200")
    for kind, fit in again.fits.items():
        assert fit.constants == pytest.approx(shipped.fits[kind].constants, rel=1e-3), kind
        for new, old in zip(fit.errors, shipped.fits[kind].errors, strict=True):
            assert (new.regime, new.points) == (old.regime, old.points)
            assert new.mean == pytest.approx(old.mean, abs=1e-3)


def test_constants_can_be_explained():
    found = calibration("h200-cublas")
    quantity = found.fits["gemm"].quantities(found.source)["read_bandwidth"]
    assert (quantity.unit, quantity.source.kind) == ("B/s", "measured")
    assert "bandwidth" in quantity.note


def test_the_rooflines_bias_is_said_in_numbers():
    sentence = bias_sentence()
    assert "fused MoE ops (h200-vllm-triton)" in sentence
    assert "dense GEMMs (h200-cublas)" in sentence
