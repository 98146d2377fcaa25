"""Estimates against files that the tests write: equal ones, planted mistakes, broken files."""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.check import check
from moeplan.check.differences import Found, gathered
from moeplan.check.sources import header
from moeplan.check.tensors import short
from moeplan.errors import UserError
from moeplan.families import read_config
from moeplan.report.check import check_tables
from tests.check.files import (
    BYTES,
    EXPERTS,
    HIDDEN,
    LAYERS,
    MIXTRAL,
    WIDTH,
    Tensors,
    folder,
    mixtral,
    sharded,
    write,
    write_index,
)
from tests.oracle import ours

MOE = "model.layers.{}.block_sparse_moe."


def lines(path: Path) -> list[tuple[str, str, int]]:
    """(kind, name, tensors) of each difference."""
    return [(d.kind, d.name, d.tensors) for d in check(path).differences]


# ------------------------------------------------------------------------------------- equal
def test_one_file(tmp_path: Path) -> None:
    found = check(folder(tmp_path, mixtral()))
    assert found.equal
    assert found.label == "counted from safetensors headers of 1 file"
    values = sum(prod(shape) for _, shape in mixtral().values())
    assert found.here is not None
    assert found.there.values == found.here.values == values
    assert found.there.size == found.here.size == 2 * values
    assert found.there.tensors == len(mixtral())
    assert found.there.dtypes == {"BF16": (len(mixtral()), 2 * values)}


def test_the_config_file_itself_may_be_named(tmp_path: Path) -> None:
    assert check(folder(tmp_path, mixtral()) / "config.json").equal


@pytest.mark.parametrize("index", [True, False])
def test_several_files(tmp_path: Path, index: bool) -> None:
    folder(tmp_path)
    sharded(tmp_path, mixtral(), index=index)
    found = check(tmp_path)
    assert found.equal
    assert found.label.endswith("headers of 3 files")


def test_names_of_an_index_and_its_total(tmp_path: Path) -> None:
    write_index(folder(tmp_path), mixtral())
    found = check(tmp_path)
    assert found.equal
    assert found.label == "names read from model.safetensors.index.json"
    assert found.there.values is None
    assert found.there.size == 2 * sum(prod(shape) for _, shape in mixtral().values())


def test_some_of_the_files_of_an_index(tmp_path: Path) -> None:
    folder(tmp_path)
    sharded(tmp_path, mixtral())[1].unlink()
    found = check(tmp_path)
    assert found.equal
    assert "headers of 2 files of 3, and names from" in found.label


def test_what_is_known_by_name_alone_is_said(tmp_path: Path) -> None:
    """An index without its files, or with some: no shape of the rest was seen."""
    sharded(folder(tmp_path / "some"), mixtral(), index=True)[1].unlink()
    some = check(tmp_path / "some")
    whole = check(folder(tmp_path / "all", mixtral()))
    assert (whole.by_name, whole.to_dict()["by_name_alone"]) == (0, 0)
    assert check_tables(whole)[0].title == "The estimate is equal, tensor by tensor"
    assert 0 < some.by_name < len(mixtral())
    assert check_tables(some)[0].title == (
        f"Nothing differs; of {some.by_name} of {len(mixtral())} tensors the name alone is known"
    )


def test_files_without_prediction_modules(tmp_path: Path) -> None:
    """Files that drop the modules whole differ in nothing else; those that hold a part, do."""
    config = {
        "model_type": "qwen3_next", "hidden_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 6,
        "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40,
        "num_experts_per_tok": 2, "vocab_size": 128, "torch_dtype": "bfloat16",
    }  # fmt: skip
    every, _ = ours(read_config(config, "small"), mtp=True)
    tensors: Tensors = {
        name.replace("{e}", str(e)): ("BF16", tensor.shape)
        for name, tensor in every.items()
        if tensor.tied is None
        for e in range(tensor.copies)
    }
    modules = {name for name in tensors if name.startswith("mtp.")}
    assert len(modules) > 10
    found = check(folder(tmp_path / "whole", tensors, config))
    kept = {n: t for n, t in tensors.items() if n not in modules}
    without = check(folder(tmp_path / "without", kept, config))
    part = check(folder(tmp_path / "part", kept | {"mtp.norm.weight": ("BF16", (64,))}, config))
    wrong = {d.name for d in found.differences}
    assert {d.name for d in without.differences} == wrong  # types of what is kept in fp32
    assert any("of which the files hold none" in note for note in without.notes)
    missing = sum(d.tensors for d in part.differences if d.kind == "missing")
    assert missing == len(modules) - 1


def test_another_frameworks_copy_is_not_counted_too(tmp_path: Path) -> None:
    folder(tmp_path, mixtral())
    write(tmp_path / "consolidated.safetensors", {"tok_embeddings.weight": ("BF16", (4, 4))})
    assert check(tmp_path).equal


def test_the_data_is_never_read(tmp_path: Path) -> None:
    """A sparse file of a gigabyte answers at once: only its header is looked at."""
    big: Tensors = {"a": ("BF16", (1 << 15, 1 << 14))}
    write(tmp_path / "m.safetensors", big, short=1 << 30)
    with (tmp_path / "m.safetensors").open("r+b") as opened:
        opened.truncate(opened.seek(0, 2) + (1 << 30))
    assert header(tmp_path / "m.safetensors")["a"].size == 1 << 30


@pytest.mark.oracle
def test_headers_of_files_that_the_formats_own_library_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs tensors")
    library = pytest.importorskip("safetensors.torch", reason="needs the format's own library")
    tensors = {
        "a": torch.zeros(3, 5, dtype=torch.bfloat16),
        "b.c": torch.zeros((), dtype=torch.float32),
        "d": torch.zeros(0, 4, dtype=torch.int8),
        "e": torch.zeros(2, 2, 7, dtype=torch.float8_e4m3fn),
        "f": torch.zeros(9, dtype=torch.bool),
        "g": torch.zeros(2, dtype=torch.int64),
    }
    library.save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    found = header(tmp_path / "m.safetensors")
    assert {n: (e.shape, e.size) for n, e in found.items()} == {
        name: (tuple(t.shape), t.numel() * t.element_size()) for name, t in tensors.items()
    }
    assert [found[n].dtype for n in "ade"] == ["BF16", "I8", "F8_E4M3"]


# --------------------------------------------------------------------------- planted mistakes
def test_a_missing_layer(tmp_path: Path) -> None:
    tensors = {n: t for n, t in mixtral().items() if not n.startswith("model.layers.1.")}
    found = lines(folder(tmp_path, tensors))
    assert {kind for kind, _, _ in found} == {"missing"}
    assert sum(number for *_, number in found) == 7 + 3 * EXPERTS
    assert ("missing", MOE.format(1) + "experts.{0-3}.w1.weight", EXPERTS) in found


def test_a_layer_too_many(tmp_path: Path) -> None:
    found = lines(folder(tmp_path, mixtral(), num_hidden_layers=LAYERS - 1))
    assert {kind for kind, _, _ in found} == {"extra"}
    assert sum(number for *_, number in found) == 7 + 3 * EXPERTS


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = mixtral()
    del tensors[MOE.format(2) + "experts.1.w3.weight"]
    assert lines(folder(tmp_path, tensors)) == [
        ("missing", MOE.format(2) + "experts.1.w3.weight", 1)
    ]


def test_renamed_tensors(tmp_path: Path) -> None:
    tensors = {n.replace("self_attn.o_proj", "self_attn.out"): t for n, t in mixtral().items()}
    found = check(folder(tmp_path, tensors)).differences
    assert [(d.kind, d.name, d.tensors) for d in found] == [
        ("missing", "model.layers.{0-2}.self_attn.o_proj.weight", 3),
        ("extra", "model.layers.{0-2}.self_attn.out.weight", 3),
    ]
    assert found[0].hint == "is it model.layers.{0-2}.self_attn.out.weight?"


@pytest.mark.parametrize("change", ["shape", "dtype"])
def test_another_shape_or_type(tmp_path: Path, change: str) -> None:
    tensors, name = mixtral(), "model.layers.0.self_attn.k_proj.weight"
    dtype, (rows, columns) = tensors[name]
    tensors[name] = (dtype, (columns, rows)) if change == "shape" else ("F32", (rows, columns))
    (found,) = check(folder(tmp_path, tensors)).differences
    assert (found.kind, found.name) == ("shape" if change == "shape" else "format", name)
    here, there = (f"[{rows}, {columns}]", f"[{columns}, {rows}]")
    if change == "dtype":
        here, there = f"bf16, {2 * rows * columns:,} B", f"F32, {4 * rows * columns:,} B"
    assert (found.here, found.there) == (here, there)


def test_a_wrong_total_of_an_index(tmp_path: Path) -> None:
    write_index(folder(tmp_path, torch_dtype="float32"), mixtral())
    (found,) = check(tmp_path).differences
    values = sum(prod(shape) for _, shape in mixtral().values())
    assert (found.kind, found.here, found.there) == (
        "total", f"{4 * values:,} B", f"{2 * values:,} B",
    )  # fmt: skip


def test_a_renamed_tensor_of_an_index(tmp_path: Path) -> None:
    tensors = {n.replace("w1", "gate"): t for n, t in mixtral().items()}
    write_index(folder(tmp_path), tensors)
    kinds = {(d.kind, d.tensors) for d in check(tmp_path).differences}
    assert kinds == {("missing", LAYERS * EXPERTS), ("extra", LAYERS * EXPERTS)}


# -------------------------------------------------------------------- names, fused and split
@pytest.mark.parametrize("before", ["language_model.model.", "model.language_model.", ""])
def test_wrapping_words_do_not_matter(tmp_path: Path, before: str) -> None:
    tensors = {n.replace("model.", before, 1): t for n, t in mixtral().items()}
    found = check(folder(tmp_path, tensors))
    assert found.equal
    assert any("without the leading words" in note for note in found.notes)


def test_short_names() -> None:
    names = ("model.layers.0.x", "model.language_model.layers.0.x", "transformer.layers.0.x")
    assert {short(name) for name in names} == {"layers.0.x"}
    assert short("vision_model.layers.0.x") == "vision_model.layers.0.x"
    assert short("model") == "model"


def fused(tensors: Tensors) -> Tensors:
    """q, k and v in one tensor, and the experts of a layer in two."""
    out = {n: t for n, t in tensors.items() if not re.search(r"\.[qkv]_proj|\.experts\.", n)}
    for i in range(LAYERS):
        rows = sum(tensors[f"model.layers.{i}.self_attn.{x}_proj.weight"][1][0] for x in "qkv")
        out[f"model.layers.{i}.self_attn.qkv_proj.weight"] = ("BF16", (rows, HIDDEN))
        at = MOE.format(i) + "experts."
        out[f"{at}gate_up_proj"] = ("BF16", (EXPERTS, 2 * WIDTH, HIDDEN))
        out[f"{at}down_proj"] = ("BF16", (EXPERTS, HIDDEN, WIDTH))
    return out


def test_fused_tensors_are_the_same_model(tmp_path: Path) -> None:
    found = check(folder(tmp_path, fused(mixtral())))
    assert found.equal
    assert "9 modules that the two sides divide differently" in found.notes


def test_a_fused_tensor_of_another_size(tmp_path: Path) -> None:
    tensors = fused(mixtral())
    at = "model.layers.1.block_sparse_moe.experts."
    tensors[f"{at}down_proj"] = ("BF16", (EXPERTS - 1, HIDDEN, WIDTH))
    (found,) = check(folder(tmp_path, tensors)).differences
    assert (found.kind, found.name) == ("shape", "layers.1.block_sparse_moe.experts[down]")
    assert found.here == f"{EXPERTS * HIDDEN * WIDTH:,} values"


def test_a_tied_head_may_be_stored_again(tmp_path: Path) -> None:
    again = mixtral()
    once = {n: t for n, t in again.items() if n != "lm_head.weight"}
    for place, tensors in (("once", once), ("again", again)):
        path = folder(tmp_path / place, tensors, tie_word_embeddings=True)
        assert check(path).equal
        write_index(folder(tmp_path / f"index-{place}", tie_word_embeddings=True), tensors)
        assert check(tmp_path / f"index-{place}").equal
    assert any("stored again" in note for note in check(tmp_path / "again").notes)
    head = {n: t for n, t in again.items() if "embed_tokens" not in n}
    found = check(folder(tmp_path / "head", head, tie_word_embeddings=True))
    assert found.equal
    assert "model.embed_tokens.weight is stored as lm_head.weight" in found.notes


def test_values_that_follow_from_the_config_are_no_weights(tmp_path: Path) -> None:
    tensors = mixtral() | {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (32,))}
    found = check(folder(tmp_path, tensors))
    assert found.equal
    assert any("computed from the config" in note for note in found.notes)


# --------------------------------------------------------------------------- unknown families
def test_an_unknown_family_is_counted(tmp_path: Path) -> None:
    found = check(folder(tmp_path, mixtral(), model_type="brand_new"))
    values = sum(prod(shape) for _, shape in mixtral().values())
    assert (found.there.values, found.there.size) == (values, 2 * values)
    assert found.refusal is not None
    assert "'brand_new'" in found.refusal
    assert found.here is None
    assert not found.equal
    assert found.to_dict()["source"]["label"].startswith("counted from safetensors headers")


def test_a_refused_config_is_counted(tmp_path: Path) -> None:
    found = check(folder(tmp_path, mixtral(), num_experts_per_tok=9))
    assert found.refusal is not None
    assert "num_experts_per_tok" in found.refusal
    assert found.there.tensors == len(mixtral())


# ------------------------------------------------------------------------------- broken files
def place(**change: Any) -> bytes:
    """A header of one tensor with something changed."""
    of = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]} | change
    return json.dumps({"a": of}).encode()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no safetensors file"),
        (b"\x01\x00", "no safetensors file"),
        ((10**15).to_bytes(8, "little") + b"{}", "does not fit"),
        ((50).to_bytes(8, "little") + b"{}", "does not fit"),
        ((2).to_bytes(8, "little") + b"[]", "not an object"),
        ((2).to_bytes(8, "little") + b"{x", "not valid JSON"),
        ((2).to_bytes(8, "little") + b"\xff\xff", "not valid JSON"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "needs dtype"),
        ((2).to_bytes(8, "little") + b"{}more", "followed by something else"),
    ],
)
def test_no_safetensors_file(tmp_path: Path, content: bytes, problem: str) -> None:
    file = folder(tmp_path) / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=problem) as error:
        check(tmp_path)
    assert "model.safetensors" in str(error.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"dtype": "BF17"}, "unknown type 'BF17'"),
        ({"dtype": None}, "needs dtype"),
        ({"shape": [2, -3]}, "needs dtype"),
        ({"shape": [2, 3.0]}, "needs dtype"),
        ({"shape": [True, 6]}, "needs dtype"),
        ({"shape": [2, 4]}, "needs 16"),
        ({"data_offsets": [0]}, "needs dtype"),
        ({"data_offsets": [12, 0]}, "has -12 bytes"),
        ({"data_offsets": [4, 16]}, "starts at byte 4"),
    ],
)
def test_a_header_that_contradicts_itself(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    file = tmp_path / "m.safetensors"
    write(file, {"a": ("BF16", (2, 3))}, header=place(**change))
    with pytest.raises(UserError, match=problem):
        header(file)


def test_the_same_header_unchanged(tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors", {"a": ("BF16", (2, 3))}, header=place())
    assert header(tmp_path / "m.safetensors")["a"].shape == (2, 3)


@pytest.mark.parametrize("short", [1, 1000])
def test_a_download_that_stopped(tmp_path: Path, short: int) -> None:
    write(folder(tmp_path) / "model.safetensors", mixtral(), short=short)
    with pytest.raises(UserError, match="truncated"):
        check(tmp_path)


def test_a_header_that_names_a_tensor_twice(tmp_path: Path) -> None:
    one = place()[1:-1].decode()
    write(tmp_path / "m.safetensors", {"a": ("BF16", (2, 3))}, header=f"{{{one},{one}}}".encode())
    with pytest.raises(UserError, match="names a twice"):
        header(tmp_path / "m.safetensors")


def test_a_missing_file_of_several(tmp_path: Path) -> None:
    sharded(folder(tmp_path), mixtral(), index=False)[1].unlink()
    with pytest.raises(UserError, match="1 of 3 files are missing, model-00002-of-00003"):
        check(tmp_path)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    folder(tmp_path, mixtral())
    write(tmp_path / "model2.safetensors", {"lm_head.weight": ("BF16", (2, 2))})
    with pytest.raises(UserError, match=r"lm_head\.weight is in another file"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{}", "weight_map is missing"),
        ('{"weight_map": {"a": 1}}', "weight_map is missing"),
        ('{"weight_map": {"a": "../../x.safetensors"}}', "no file of the folder"),
        ('{"weight_map": {"a": "x"}, "metadata": {"total_size": "much"}}', "whole number"),
        ('{"weight_map": {"a": "x"}, "metadata": [1]}', "metadata is not an object"),
        ("[", "not valid JSON"),
    ],
)
def test_a_broken_index(tmp_path: Path, content: str, problem: str) -> None:
    (folder(tmp_path) / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=problem):
        check(tmp_path)


def test_an_index_that_does_not_fit_its_files(tmp_path: Path) -> None:
    sharded(folder(tmp_path), mixtral())
    index = tmp_path / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(data))
    with pytest.raises(UserError, match="does not hold the tensor ghost"):
        check(tmp_path)
    del data["weight_map"]["ghost"], data["weight_map"]["lm_head.weight"]
    index.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"without being named for it the tensor lm_head\.weight"):
        check(tmp_path)


def test_no_config_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.json"):
        check(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        check(tmp_path / "nothing")


# ------------------------------------------------------------------------------ lines of names
@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1))
def test_gathered_names_are_exactly_those_that_differ(places: set[tuple[int, int]]) -> None:
    found = [Found("missing", f"layers.{i}.experts.{e}.x", "", "") for i, e in places]
    out = gathered(found)
    named = []
    for line in out:
        i, e = (numbers(word) for word in re.findall(r"(?<=layers\.|xperts\.)[^.]+", line.name))
        assert line.tensors == len(i) * len(e)
        named += [(a, b) for a in i for b in e]
    assert sorted(named) == sorted(places)


def numbers(word: str) -> list[int]:
    out = []
    for part in word.strip("{}").split(","):
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
    return out


def test_sizes_of_element_types_here_are_those_of_the_format() -> None:
    from moeplan.check.tensors import BITS

    assert {dtype: 8 * size for dtype, size in BYTES.items()} == {d: BITS[d] for d in BYTES}
    assert MIXTRAL["model_type"] == "mixtral"
