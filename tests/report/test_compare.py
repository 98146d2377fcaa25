"""Models side by side: published numbers and ratios, fitting the console, honest notes."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from moeplan.api import compare, estimate
from moeplan.errors import UserError
from moeplan.estimation.estimate import Estimate
from moeplan.load import load_model
from moeplan.report.beside import beside_dense, beside_tables
from moeplan.report.columns import ratio
from moeplan.report.compare import compare_tables, labels, per_token
from moeplan.report.tables import Table, print_tables, to_csv, to_markdown


@pytest.fixture(scope="module")
def models() -> list[Estimate]:
    names = ("mixtral-8x7b", "deepseek-v3", "llama-3.1-8b", "kimi-k2", "qwen3-30b-a3b", "grok-1")
    return compare(*names)


def row(table: Table, label: str) -> list[str]:
    return [str(cell) for cell in next(r for r in table.rows if r[0] == label)[1:]]


def numbers(table: Table, label: str) -> list[Any]:
    assert table.values is not None
    return list(next(r for r in table.values if r[0] == label)[1:])


# ------------------------------------------------------------------------------------ numbers
@pytest.mark.parametrize(
    ("label", "mixtral", "deepseek", "cell"),
    [
        # counted from the checkpoints' tensors
        ("parameters", 46_702_792_704, 671_026_404_352, "671.0 B   14.4x"),
        ("active: all touched", 12_879_925_248, 37_552_282_624, "37.55 B   2.92x"),
        ("active: no input table", 12_748_853_248, 36_625_603_584, "36.63 B   2.87x"),
        # 32 layers x 2 x 8 heads x 128 x 2 bytes; 61 layers x (512 + 64) x 2 bytes
        ("KV cache a token", 131_072, 70_272, "70.27 kB  0.536x"),
        ("experts", 8, 256, "256"),
        ("top-k", 2, 8, "8"),
        ("MoE layers", 32, 58, "58"),
    ],
)
def test_published_numbers_and_their_ratios(
    models: list[Estimate], label: str, mixtral: int, deepseek: int, cell: str
) -> None:
    table = compare_tables(models[:2])[0]
    assert numbers(table, label) == [mixtral, deepseek]
    assert row(table, label)[1] == cell


def test_published_training_work(models: list[Estimate]) -> None:
    """79.7 (Megatron-LM's count, without router) and 250 GFLOP a token (arXiv 2505.09343)."""
    found = numbers(compare_tables(models[:2])[0], "training FLOPs/token")
    assert found == pytest.approx([79.7e9, 250e9], rel=3e-3)


def test_all_to_all_of_a_token_counted_by_hand() -> None:
    """Every copy sent, one GPU a node: of 8 copies 255 in 256 leave, 1 byte out and 2 back."""
    e = estimate(
        "deepseek-v3", ep=256, node=1, policy="copies", dispatch="fp8_unscaled", combine="bf16"
    )
    inside, outside = per_token(e.tree["all_to_all"])
    assert inside == 0
    assert outside == pytest.approx(58 * 8 * 255 / 256 * 7168 * (1 + 2))


def test_all_to_all_of_a_token_does_not_depend_on_the_tokens() -> None:
    few, many = (estimate("deepseek-v3", tokens=n).tree["all_to_all"] for n in (128, 8192))
    assert per_token(few) == pytest.approx(per_token(many))


@given(
    value=st.floats(1e-3, 1e12, allow_nan=False), reference=st.floats(1e-3, 1e12, allow_nan=False)
)
def test_ratio_reads_back_to_its_digits(value: float, reference: float) -> None:
    text = ratio(value, reference)
    assert text.endswith("x")
    digits = 3 if 0.01 <= value / reference < 999_999 else 2 if value / reference >= 0.001 else 1
    tolerance = 0.51 * 10.0 ** (1 - digits)
    assert float(text[:-1].replace(",", "")) == pytest.approx(value / reference, rel=tolerance)


@pytest.mark.parametrize(
    ("times", "text"),
    [(14.37, "14.4x"), (1, "1.00x"), (0.27578, "0.276x"), (0.0559, "0.0559x"), (1234, "1,234x")],
)
def test_ratio_is_short(times: float, text: str) -> None:
    assert ratio(times, 1) == text


def test_ratio_to_nothing_is_left_out() -> None:
    assert ratio(5, 0) == ""
    table = compare_tables(compare("mixtral-8x7b", "deepseek-v3"))[0]
    assert row(table, "all-to-all other nodes")[0] == "0 B"  # one node holds all 8 experts
    assert not row(table, "all-to-all other nodes")[1].endswith("x")


def test_one_model_has_no_ratios(models: list[Estimate]) -> None:
    table = compare_tables(models[:1])[0]
    assert row(table, "parameters") == ["46.70 B"]
    assert "x: times" not in table.title


# ------------------------------------------------------------------------------------ fitting
def printed(tables: list[Table], width: int) -> str:
    out = io.StringIO()
    print_tables(tables, Console(file=out, width=width, highlight=False, color_system=None))
    return out.getvalue()


@pytest.mark.parametrize(("width", "columns"), [(80, 3), (120, 5)])
def test_as_many_models_fit_as_promised(models: list[Estimate], width: int, columns: int) -> None:
    first = compare_tables(models, width)[0]
    assert len(first.columns) - 1 >= columns


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_nothing_is_wider_than_the_console_and_no_cell_is_broken(
    models: list[Estimate], width: int
) -> None:
    tables = compare_tables(models, width)
    text = printed(tables, width)
    assert max(len(line) for line in text.splitlines()) <= width
    for table in tables:
        for cells in table.rows:
            assert any(all(cell in line for cell in cells) for line in text.splitlines()), cells


def test_split_tables_hold_each_model_once_beside_the_first(models: list[Estimate]) -> None:
    tables = [t for t in compare_tables(models, 80) if t.title.startswith("Models")]
    heads = [[column.title.replace("\n", "") for column in t.columns[1:]] for t in tables]
    assert {head[0] for head in heads} == {"mixtral-8x7b"}
    assert ["mixtral-8x7b", *(n for head in heads for n in head[1:])] == labels(models)
    # a ratio is to the first model, in whichever part it stands
    assert row(tables[-1], "parameters")[-1].endswith(f"{315_684_820_992 / 46_702_792_704:.2f}x")


def test_without_a_console_all_models_stand_in_one_table(models: list[Estimate]) -> None:
    table = compare_tables(models)[0]
    assert [column.title for column in table.columns[1:]] == labels(models)
    assert "671.0 B" in to_markdown([table])
    assert "parameters,46702792704,671026404352," in to_csv([table])


def test_long_names_break_at_their_hyphens() -> None:
    spec = load_model("mixtral-8x7b")
    long = "a-model-of-many-words-in-its-name-and-a-number-123456"
    both = compare(spec, replace(spec, name=long), replace(spec, name="unbreakable" * 4))
    table = compare_tables(both, 80)[0]
    assert table.columns[2].title.replace("\n", "") == long
    assert max(len(line) for line in table.columns[2].title.split("\n")) < 20
    assert max(len(line) for line in printed([table], 80).splitlines()) <= 80


# -------------------------------------------------------------------------------------- notes
def test_notes_count_the_assumptions(models: list[Estimate]) -> None:
    notes = " ".join(compare_tables(models[:2])[0].notes)
    counts = [len(e.assumptions) for e in models[:2]]
    assert f"mixtral-8x7b {counts[0]}, deepseek-v3 {counts[1]}" in notes
    said = compare("mixtral-8x7b", context=8192, batch=4)
    assert f"mixtral-8x7b {counts[0] - 2}" in " ".join(compare_tables(said)[0].notes)


def test_notes_say_where_columns_mean_different_things(models: list[Estimate]) -> None:
    notes = " ".join(compare_tables(models[:2])[0].notes)
    assert "as each checkpoint stores them" in notes  # bf16 and fp8
    assert "Expert-parallel groups differ" in notes
    assert "deepseek-v3, not counted: multi-token prediction (11.61 B parameters)" in notes
    alike = compare("mixtral-8x7b", "deepseek-v3", weights="bf16", ep=8)
    notes = " ".join(compare_tables(alike)[0].notes)
    assert "as each checkpoint stores them" not in notes
    assert "Expert-parallel groups differ" not in notes


def test_notes_tell_windows_and_states() -> None:
    notes = " ".join(compare_tables(compare("gpt-oss-20b", "qwen3-next-80b-a3b"))[0].notes)
    assert "gpt-oss-20b: beyond its windows the cache grows by 24.58 kB a token" in notes
    assert "qwen3-next-80b-a3b: a sequence holds" in notes


def test_different_settings_are_named() -> None:
    mixed = [estimate("mixtral-8x7b"), estimate("mixtral-8x7b", batch=8)]
    table = compare_tables(mixed)[0]
    assert [column.title for column in table.columns[1:]] == ["mixtral-8x7b #1", "mixtral-8x7b #2"]
    assert any("different settings: batch" in note for note in table.notes)


# --------------------------------------------------------------------------------- bad input
def test_nothing_and_sweeps_are_refused() -> None:
    with pytest.raises(UserError, match="at least one model"):
        compare_tables([])
    with pytest.raises(UserError, match="--batch holds several values"):
        compare_tables(compare("mixtral-8x7b", batch=[1, 2, 4]))


# ----------------------------------------------------------------------------- dense models
def test_dense_only_has_no_expert_rows_and_no_dense_comparison() -> None:
    tables = compare_tables(compare("llama-3.1-8b", "mistral-7b"))
    assert len(tables) == 1
    shown = {r[0] for r in tables[0].rows}
    assert not shown & {"experts", "top-k", "expert parallelism", "all-to-all in node"}
    assert row(tables[0], "active share (all)") == ["100.0%", "100.0%"]
    assert beside_tables("llama-3.1-8b", estimate("llama-3.1-8b"), None) == []


def test_a_dense_model_of_equal_active_size_decodes_faster_in_a_batch_only() -> None:
    """At batch 1 both read the same bytes; at 64 Mixtral reads all 8 experts, the other 2."""
    moe, active, total = beside_dense(estimate("mixtral-8x7b"))
    assert moe.batches == (1, 64)
    assert moe.decode[0] == pytest.approx(active.decode[0], rel=1e-3)
    cache = 64 * 4096 * 131_072  # bytes, the same for both
    bytes_read = [cache + 2 * 46_571_720_704, cache + 2 * 12_748_853_248]  # without the look-up
    assert moe.decode[1] / active.decode[1] == pytest.approx(
        bytes_read[0] / bytes_read[1], rel=2e-2
    )
    assert active.decode[1] < moe.decode[1] < total.decode[1]


def test_an_moe_does_a_fraction_of_the_work_of_a_dense_model_of_its_size() -> None:
    moe, active, total = beside_dense(estimate("mixtral-8x7b"))
    assert moe.flops == pytest.approx(active.flops, rel=1e-4)
    # attention and head work alike, the FFN four times (8 experts to 2)
    rest = moe.flops - 32 * 2 * 3 * 4096 * 2 * 14336
    assert total.flops == pytest.approx(rest + 32 * 2 * 3 * 4096 * 8 * 14336, rel=1e-3)
    assert total.weights == pytest.approx(moe.weights, rel=1e-4)


def test_dense_comparison_takes_the_batch_of_the_scenario() -> None:
    moe, *_ = beside_dense(estimate("mixtral-8x7b", batch=16))
    assert moe.batches == (1, 16)
    assert moe.decode[1] == pytest.approx(
        estimate("mixtral-8x7b", batch=16)["time.decode.lower"].value
    )


def test_each_moe_has_its_dense_table(models: list[Estimate]) -> None:
    tables = compare_tables(models[:3])
    assert [t.columns[1].title for t in tables[1:]] == ["mixtral-8x7b", "deepseek-v3"]
    assert row(tables[1], "FFN width") == ["–", "28,675", "114,691"]
    assert row(tables[1], "parameters") == ["46.70 B", "12.88 B  0.276x", "46.70 B   1.00x"]
