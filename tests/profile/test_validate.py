"""Errors of predictions in records: figures by hand, bands that can fail, tables, plots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from moeplan.errors import UserError
from moeplan.profile.command import ValidateOptions, run_validate, summary
from moeplan.profile.plots import PLOTS, draw_all, plot_errors, plot_ops, plot_rows, plot_speed
from moeplan.profile.record import Record
from moeplan.profile.store import save_record
from moeplan.profile.validate import GATES, Band, errors_of, op_points, validate
from moeplan.profile.view import percent, record_tables
from moeplan.profile.view_errors import error_tables
from moeplan.report.tables import Table, print_tables
from tests.profile.records import case, record


def write(folder: Path, *records: Record) -> Path:
    for number, r in enumerate(records):
        save_record(r, folder / f"{number}.json")
    return folder


def text(tables: list[Table], width: int = 80) -> str:
    console = Console(width=width, highlight=False, no_color=True)
    with console.capture() as out:
        print_tables(tables, console)
    return out.get()


def test_errors_by_hand() -> None:
    found = errors_of([1, 3, 2, 4], [2, 2, 2, 4])  # -50 %, +50 %, 0, 0
    assert found.points == 4
    assert found.mean == pytest.approx(0.25)
    assert found.median == pytest.approx(0.25)
    assert found.p90 == pytest.approx(0.5)
    assert found.bias == pytest.approx(0.0)
    assert errors_of([1], [4]).bias == pytest.approx(-0.75)
    with pytest.raises(ValueError, match="no points"):
        errors_of([], [])


# (name, predicted, measured): +10 % and -10 %; the layer: 2.0 against 2.1 measured
CASE = case([("router", 1.1, 1.0), ("combine", 0.9, 1.0)], layer=2.1)


def test_records_are_judged_per_op_and_per_layer(tmp_path: Path) -> None:
    other = case([("router", 1.0, 1.0), ("combine", 1.0, 2.0)], tokens=8, subject="other")
    found = validate([write(tmp_path, record([CASE]), record([other]))])
    assert found.ops["router", "forward"].mean == pytest.approx(0.05)
    assert found.ops["combine", "forward"].bias == pytest.approx(-0.3)
    assert found.all_ops.points == 4
    assert found.layers["model"].mean == pytest.approx(1 - 2.0 / 2.1)
    assert found.layers["other"].mean == pytest.approx(1 / 3)
    assert found.whole.bias == pytest.approx(-(1 - 2.0 / 2.1 + 1 / 3) / 2)
    assert found.spread == pytest.approx(0.16)  # of 0.9, 1.0, 1.1: 0.92 to 1.08
    assert found.between is None
    json.dumps(found.to_dict())


def test_equal_cases_of_several_records_give_the_spread_between_runs(tmp_path: Path) -> None:
    slower = case([("router", 1.1, 1.0), ("combine", 0.9, 1.0)], layer=2.31)
    found = validate([write(tmp_path, record([CASE]), record([slower]))])
    assert found.between == pytest.approx((2.31 - 2.1) / ((2.31 + 2.1) / 2))


def test_ops_that_hardly_take_time_count_in_the_layer_alone(tmp_path: Path) -> None:
    tiny = case([("router", 5.0, 0.0), ("select", 1.0, 0.009), ("combine", 1.0, 1.0)])
    assert [point.name for point in op_points([record([tiny])])] == ["combine"]
    found = validate([write(tmp_path, record([tiny]))])
    assert list(found.ops) == [("combine", "forward")]
    assert found.left_out == 1  # one without any time has no error at all
    assert found.whole.mean > 5


def test_the_reference_backend_is_not_judged(tmp_path: Path) -> None:
    slow = case([("router", 1.0, 99.0)]).model_copy(update={"backend": "reference"})
    found = validate([write(tmp_path, record([CASE, slow]))])
    assert (found.whole.points, found.all_ops.points) == (1, 2)


def test_good_predictions_pass_and_each_gate_can_fail(tmp_path: Path) -> None:
    good = case([("router", 1.0, 1.0), ("combine", 1.01, 1.0)])
    assert validate([write(tmp_path / "good", record([good]))]).breaches == []
    bad = case([("router", 1.5, 1.0), ("combine", 1.5, 1.0)], peaks=(105, 100))
    breaches = validate([write(tmp_path / "bad", record([bad]))]).breaches
    assert len(breaches) == 6
    assert breaches[0] == "mean error of layers 50.0%, past 10.0%"
    assert breaches[-1] == "largest error of peak memory 5.0%, past 2.0%"
    for name in vars(GATES):
        alone = Band(**{**dict.fromkeys(vars(GATES)), name: getattr(GATES, name)})
        assert len(validate([tmp_path / "bad"], alone).breaches) == 1
        assert validate([tmp_path / "good"], alone).breaches == []


def test_the_exit_code_follows_the_band(tmp_path: Path) -> None:
    place = write(tmp_path, record([case([("router", 1.3, 1.0)])]))
    assert run_validate(ValidateOptions([place])).code == 1
    assert run_validate(ValidateOptions([place], band=29.0)).code == 1
    assert run_validate(ValidateOptions([place], band=31.0)).code == 0
    with pytest.raises(UserError, match="--band 0: a percentage above 0"):
        run_validate(ValidateOptions([place], band=0))


def test_places_without_figures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no case of the backend torch has been measured"):
        validate([write(tmp_path, record())])
    with pytest.raises(UserError, match="no such record"):
        validate([tmp_path / "absent.json"])


# -------------------------------------------------------------------------------- tables
def test_tables_name_every_op_and_keep_to_80_columns(tmp_path: Path) -> None:
    r = record([CASE, case([("router", 1e-6, 1e-3)], tokens=16384, peaks=(100, 99))])
    r.notes.append("made up")
    shown = text(record_tables(r, detail=True))
    assert max(len(line) for line in shown.splitlines()) <= 80
    for wanted in ("Test CPU", "router", "combine", "+10%", "-10%", "-5%", "16,384", "made up",
                   "+1.01%", "kFLOP/s", "1 of 2"):  # fmt: skip
        assert wanted in shown, wanted


def test_what_was_not_measured_is_listed_with_its_reason() -> None:
    skipped = CASE.model_copy(
        update={"state": "skipped", "reason": "does not fit: 2 GB predicted, 1 GB free"}
    )
    broken = CASE.model_copy(update={"state": "running", "tokens": 9})
    shown = " ".join(text(record_tables(record([skipped, broken]))).split())
    assert "does not fit: 2 GB predicted, 1 GB free" in shown
    assert "interrupted" in shown


def test_the_verdict_names_what_is_past_the_band(tmp_path: Path) -> None:
    place = write(tmp_path, record([case([("router", 1.3, 1.0)])]))
    shown = text(error_tables(validate([place])))
    assert "PAST THE BAND: mean error of layers 30.0%, past 10.0%" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    quiet = text(error_tables(validate([place], Band(*[None] * 6))))
    assert "all figures keep the band" in quiet


@pytest.mark.parametrize(
    ("value", "signed", "written"),
    [(0.123, False, "12%"), (-0.5, True, "-50%"), (0.5, True, "+50%"), (None, True, "–"),
     (11.0, True, "12x"), (11.0, False, "11x"), (-1.0, True, "-100%")],
)  # fmt: skip
def test_shares_are_written_short(value: float | None, signed: bool, written: str) -> None:
    assert percent(value, signed) == written


def test_a_summary_holds_every_case(tmp_path: Path) -> None:
    skipped = CASE.model_copy(update={"state": "skipped", "reason": "why", "tokens": 9})
    found = json.loads(json.dumps(summary(record([CASE, skipped]))))
    assert [c["state"] for c in found["cases"]] == ["measured", "skipped"]
    assert found["cases"][0]["error"] == pytest.approx(2.0 / 2.1 - 1)


# --------------------------------------------------------------------------------- plots
def lines(figure: object, gid: str) -> list[tuple[list[float], list[float]]]:
    found = figure.findobj(lambda artist: artist.get_gid() == gid)  # type: ignore[attr-defined]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in found]


def test_points_stand_where_predicted_and_measured_say() -> None:
    figure = plot_errors([record([CASE])])
    assert lines(figure, "layers model forward") == [([2.1], [2.0])]
    assert lines(figure, "ops combine forward") == [([1.0], [0.9])]


def test_bars_are_shares_of_the_measured_time() -> None:
    figure = plot_ops([record([CASE])])
    heights = {
        p.get_gid(): p.get_height()
        for ax in figure.axes
        for p in ax.patches
        if p.get_gid() is not None
    }
    assert heights == pytest.approx(
        {"0 router forward 0": 0.5, "0 combine forward 0": 0.5,
         "0 router forward 1": 0.55, "0 combine forward 1": 0.45}
    )  # fmt: skip


def test_rows_are_drawn_from_the_busiest_expert_on() -> None:
    uneven = CASE.model_copy(update={"rows_per_expert": [1, 5, 0]})
    assert lines(plot_rows([record([uneven])]), "rows 0") == [([1, 2, 3], [5, 1, 0])]


def test_speed_is_tokens_over_time() -> None:
    figure = plot_speed([record([CASE])])
    drawn = [tuple(line.get_ydata()) for ax in figure.axes for line in ax.lines]
    assert any(y == pytest.approx([4 / 2.1]) for y in drawn)  # measured
    assert any(y == pytest.approx([4 / 2.0]) for y in drawn)  # predicted
    assert any(y == pytest.approx([4 / 1.0]) for y in drawn)  # floor: half of it, by hand


def test_every_plot_is_saved_and_records_keep_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward = case([("router", 1.0, 2.0)], tokens=64, subject="x", direction="forward+backward")
    place = write(tmp_path / "r", record([CASE]))
    found = run_validate(ValidateOptions([place], plots=tmp_path / "p"))
    files = [Path(name) for name in found.document["plots"]]
    assert [path.stem for path in files] == list(PLOTS)
    assert all(path.stat().st_size > 5000 for path in files)
    for name in ("roofline", "predicted_measured", "time_by_op"):
        monkeypatch.delitem(PLOTS, name)  # the rest is enough, and they take seconds
    both = draw_all([record([CASE]), record(), record([backward], name="x")], tmp_path / "two")
    each = ["rows_per_expert-1-model", "rows_per_expert-2-x"]
    assert [path.stem for path in both] == ["speed", *each]


def test_nothing_is_drawn_where_nothing_is_or_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to draw"):
        draw_all([record()], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        draw_all([record([CASE])], tmp_path / "file" / "x")
