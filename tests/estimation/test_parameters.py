"""Parameter counts: published figures, parts that make the whole, relations between models."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from moeplan.estimation.parameters import active, count, parameters
from moeplan.families import read_config
from moeplan.model.attention import Attention
from moeplan.model.basic import Embedding, Head
from moeplan.model.ffn import DenseFFN, MoE
from moeplan.model.spec import Group, ModelSpec
from moeplan.presets import preset
from moeplan.quantity import evaluate, plain
from tests.reading import READABLE, digits, spec_of


class Published(NamedTuple):
    """Counts as printed; with decimals: billions. None where nothing is printed."""

    total: str
    all: str | None = None
    without_input_embedding: str | None = None
    without_embeddings: str | None = None


# Makers' reports and model cards; recounted from the released tensors where those round.
PUBLISHED = {
    "mixtral-8x7b": Published("46,702,792,704", "12,879,925,248", "12,748,853,248", "12.618"),
    "mixtral-8x22b": Published("140.621", "39.152", "38.955", "38.759"),
    "deepseek-v3": Published("671,026,404,352", "37.552", "36.626", "35.699"),
    "deepseek-v2": Published("235.741", "21.376", "20.852"),
    "deepseek-v2-lite": Published("15.706", "2.661", "2.451"),
    "qwen3-30b-a3b": Published("30,532,122,624", "3.353", "3.042"),
    "qwen3-235b-a22b": Published("235,093,634,560", "22.191", "21.568"),
    "qwen3-next-80b-a3b": Published("79,674,391,296", "3.875", "3.564"),
    "gpt-oss-120b": Published("116,829,156,672", "5.712", "5.133"),
    "gpt-oss-20b": Published("20,914,757,184", "4.187", "3.608"),
    "kimi-k2": Published("1,026,408,209,408", "32.9", "31.7"),
    "glm-4.5-air": Published("106.852", "13.424", "12.803"),
    "olmoe-1b-7b": Published("6.919", "1.282", "1.179"),
    "dbrx": Published("131.597", "36.470", "35.853"),
    "llama4-scout": Published("107,769,861,120", "17.173", "16.138"),
    "arctic": Published("478.58", "17.319"),  # 17.3186; printed elsewhere as 17.318, cut off
    "minimax-text-01": Published("456.09", "48.40", None, "45.94"),
    "hunyuan-large": Published("388.70", "51.32"),  # 51.31 without routers and norms
    "step3": Published("316.29", "38.84", "37.92"),
    "ernie-4.5-300b-a47b": Published("299.48", "47.93", "47.08"),
    "grok-1": Published("315.68", "83.8"),  # 83.7566; printed elsewhere as 83.75, cut off
    "deepseek-moe-16b": Published("16.376", "2.829"),
    "ling-mini-2.0": Published("16.2556", "1.4330", None, "0.7891"),  # printed elsewhere cut off
    "nllb-moe-54b": Published("54.501"),  # 54.483 in its matrices, without biases and norms
    "switch-c-2048": Published("1571.3"),
    "longcat-flash": Published("560.66"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    published = PUBLISHED[name]
    section = parameters(spec_of(name))
    assert digits(section["total"].value, published.total) == published.total
    for definition in published._fields[1:]:
        printed = getattr(published, definition)
        if printed is not None:
            assert digits(section["active"][definition].value, printed) == printed, definition


def test_selection_biases_and_mtp_of_deepseek_v3_stand_apart() -> None:
    section = parameters(spec_of("deepseek-v3"))
    buffers = section["buffers"].value
    assert buffers == 14_848  # 58 layers of 256
    active_counts = section["active"]
    assert active_counts["all"].value + buffers == 37_552_297_472
    assert active_counts["without_input_embedding"].value + buffers == 36_625_618_432
    # DeepSeek's README_WEIGHTS leaves out the projection of 2D to D, and calls the shared
    # embedding and head (0.9 B each) active in the module
    projection = 2 * 7168 * 7168
    tables = 2 * 129_280 * 7168
    assert digits(section["mtp"].value - projection, "11.5") == "11.5"
    assert digits(section["mtp_active"].value - projection + tables, "2.4") == "2.4"


def test_a_layer_of_deepseek_v3() -> None:
    # arXiv 2502.07846 counts the two norms of the latents (1536 + 512) with the attention
    _, moe = parameters(spec_of("deepseek-v3"))["by_layer"][:2]
    held = {name: part.value for name, part in moe["by_component"].items()}
    assert held["attention"] + 1536 + 512 == 187_107_328
    assert held["norms"] == 16_384
    assert held["router"] == 1_835_008
    assert held["routed_experts"] == 256 * 44_040_192
    assert held["shared_experts"] == 44_040_192
    assert held["routed_experts"] + held["shared_experts"] + held["router"] == 11_320_164_352
    assert moe["layers"].value == 58


def test_longcat_by_the_number_of_real_experts() -> None:
    """Zero-computation experts take a token's slots, so its parameters depend on the routing."""
    spec = spec_of("longcat-flash")
    moe = spec.moe
    assert moe is not None
    assert plain(moe.k) == 12
    for real, published in ((0, "18.69"), (8, "27.15"), (12, "31.38")):
        found = active(spec.vary(MoE, r=real))["without_input_embedding"].value
        assert digits(found, published) == published


def test_glam_from_its_paper() -> None:
    """GLaM 64B/64E (arXiv 2112.06905, table 4) has no config file: its rows built by hand."""
    D, F, width = 8192, 32768, 128
    mixer = Attention(D=D, H=128, G=128, dh=width, dv=width)
    dense = Group("dense", (mixer, DenseFFN(D=D, F=F, gated=True)), 32, prefix="{i}.")
    sparse = Group("moe", (mixer, MoE(D=D, E=64, k=2, F=F, gated=False)), 32, prefix="{i}.")
    table = Embedding(V=256_000, D=D)
    head = Head(V=256_000, D=D, tied=table.name)
    spec = ModelSpec("glam", "glam", (Group("in", (table,)), dense, sparse, Group("out", (head,))))
    routers = 32 * 64 * D  # not in the paper's count
    assert digits(count(spec) - routers, "1161.7") == "1161.7"
    assert digits(active(spec)["all"].value - routers, "96.586") == "96.586"


# ------------------------------------------------------------------- parts that make the whole
@pytest.mark.parametrize("name", READABLE)
def test_parts_make_the_whole(name: str) -> None:
    spec = spec_of(name)
    section = parameters(spec)
    whole, touched = section["total"].value, section["active"]
    assert isinstance(whole, int)
    assert sum(part.value for part in section["by_component"].values()) == whole == count(spec)
    # whole numbers are compared whole; an expectation over zero-computation experts is a fraction
    everything = touched["all"].value
    close = everything if isinstance(everything, int) else pytest.approx(everything, rel=1e-12)
    assert sum(part.value for part in touched["by_component"].values()) == close

    rows = [row for row in section["by_layer"] if row["role"] != "mtp"]
    layers = {
        key: sum(r["layers"].value * r[key].value for r in rows) for key in ("total", "active")
    }
    outside = _outside_layers(spec, "model", "encoder")
    assert layers["total"] + outside == whole
    assert layers["active"] + outside == close
    for row in section["by_layer"]:
        assert sum(part.value for part in row["by_component"].values()) == row["total"].value
    modules = [row for row in section["by_layer"] if row["role"] == "mtp"]
    inside = sum(r["layers"].value * r["total"].value for r in modules)
    assert inside + _outside_layers(spec, "mtp") == section["mtp"].value


def _outside_layers(spec: ModelSpec, *roles: str) -> int:
    """Embedding, final norms and head, from their dimensions."""
    total = 0
    for group in spec.groups:
        if group.role not in roles or group.is_layer:
            continue
        for block in group.blocks:
            values = block.values
            for weight in block.weights():
                if weight.tied is None:
                    size = 1
                    for dim in weight.dims:
                        size *= evaluate(dim, values)
                    total += size
    return total


@pytest.mark.parametrize("name", READABLE)
def test_definitions_of_active(name: str) -> None:
    spec = spec_of(name)
    touched = {key: q.value for key, q in active(spec).items()}
    table = plain(spec.vocabulary) * plain(spec.hidden)
    head = spec.first(Head)
    assert head is not None
    rows = plain(head.symbols["V"])  # a head may have fewer outputs than the table has rows
    output = rows * plain(spec.hidden) + (rows if head.bias else 0)
    assert touched["all"] <= count(spec)
    if spec.tied:  # the only table is also the head's matrix: it is multiplied, so it stays
        assert touched["without_input_embedding"] == touched["all"]
        assert touched["without_embeddings"] == touched["all"] - output
    else:
        assert touched["without_input_embedding"] == touched["all"] - table
        assert touched["without_embeddings"] == touched["all"] - table - output


# -------------------------------------------------------------------------------- relations
def small(**changes: Any) -> dict[str, Any]:
    """A small Mixtral."""
    shape = {
        "model_type": "mixtral",
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 500,
        "tie_word_embeddings": False,
    }
    return shape | changes


def test_one_expert_is_a_dense_layer_with_a_router() -> None:
    one = read_config(small(num_local_experts=1, num_experts_per_tok=1), "one expert")
    plain_shape = small(model_type="mistral", sliding_window=None)
    del plain_shape["num_local_experts"], plain_shape["num_experts_per_tok"]
    dense = read_config(plain_shape, "dense")
    routers = 3 * 96  # one row of D in each layer
    assert count(one) == count(dense) + routers
    assert active(one)["all"].value == count(one)


def test_more_experts_change_the_total_and_hardly_the_active() -> None:
    few, many = (read_config(small(num_local_experts=n), str(n)) for n in (8, 24))
    router_rows = 3 * 96 * (24 - 8)
    expert = 3 * 96 * 160
    assert active(many)["all"].value - active(few)["all"].value == router_rows
    assert count(many) - count(few) == router_rows + 3 * (24 - 8) * expert


def test_more_chosen_experts_change_the_active_alone() -> None:
    one, four = (read_config(small(num_experts_per_tok=k), str(k)) for k in (1, 4))
    assert count(one) == count(four)
    assert active(four)["all"].value - active(one)["all"].value == 3 * 3 * (3 * 96 * 160)


def test_all_experts_chosen_means_all_parameters_active() -> None:
    spec = read_config(small(num_experts_per_tok=8), "all")
    assert active(spec)["all"].value == count(spec)


def test_tying_removes_one_table() -> None:
    apart, tied = (read_config(small(tie_word_embeddings=on), str(on)) for on in (False, True))
    assert count(apart) - count(tied) == 500 * 96


def test_the_claim_of_eight_fat_experts() -> None:
    """8 experts ten times as wide, top-2: 80 times the FFN parameters, 20 times its compute."""
    dense = DenseFFN(D=512, F=1000)
    moe = MoE(D=512, E=8, k=2, F=10_000)
    (base,) = (sum(s.elements for s in dense.sizes.values()),)
    experts = [s for name, s in moe.sizes.items() if "experts" in name]
    assert sum(s.elements for s in experts) == 80 * base
    assert sum(s.active for s in experts) == 20 * base


def test_a_preset_and_its_config_count_the_same() -> None:
    entry = preset("mixtral-8x7b")
    assert count(read_config(entry.config, "as a mapping")) == count(spec_of("mixtral-8x7b"))
