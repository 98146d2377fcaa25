"""The reader fails closed: what it does not understand is refused by name, never guessed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moeplan.errors import UserError
from moeplan.families import FAMILIES, read_config
from moeplan.families.reader import Config, shown
from moeplan.model.spec import ModelSpec
from moeplan.model.workload import Workload
from moeplan.quantity import evaluate
from tests.families.oracle_cases import SHARED, base, load, merged
from tests.fingerprint import fingerprint

DENSE = ("llama", "mistral", "qwen2", "qwen3")
DROP = object()

SMALL: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "vocab_size": 100,
}


def refused(config: Mapping[str, Any], path: str = "config.json") -> str:
    """The sentence with which a config is refused."""
    with pytest.raises(UserError) as caught:
        read_config(config, path)
    return str(caught.value)


def outcome(config: Mapping[str, Any]) -> ModelSpec | str:
    """The model, or the sentence with which the config is refused."""
    try:
        return read_config(config, "config.json")
    except UserError as problem:
        return str(problem)


def changed(**changes: Any) -> dict[str, Any]:
    return {k: v for k, v in {**SMALL, **changes}.items() if v is not DROP}


# ---------------------------------------------------------------------------- single mistakes
def test_the_small_config_is_right() -> None:
    assert read_config(SMALL, "config.json").moe is not None


@pytest.mark.parametrize("key", [k for k in SMALL if k != "model_type"])
def test_a_missing_key_is_named(key: str) -> None:
    said = refused(changed(**{key: DROP}))
    assert said.startswith(f"config.json: key {key}")
    assert "is missing" in said


@pytest.mark.parametrize("key", [k for k in SMALL if k != "model_type"])
def test_a_misspelt_key_is_found(key: str) -> None:
    wrong = key[:4] + key[5:]
    said = refused({**changed(**{key: DROP}), wrong: SMALL[key]})
    assert f"did you mean '{wrong}'?" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9: it must be at most the 8 experts"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok is 0: it must be at least 1"),
        ({"num_experts": 0}, "num_experts is 0: it must be at least 1"),
        ({"num_experts": -8}, "num_experts is -8: it must be at least 1"),
        ({"num_experts": "8"}, "num_experts is '8': a whole number is needed"),
        ({"num_experts": True}, "num_experts is True: a whole number is needed"),
        ({"num_experts": 8.5}, "num_experts is 8.5: a whole number is needed"),
        ({"num_experts": math.nan}, "num_experts is nan: a whole number is needed"),
        ({"num_experts": [8]}, "num_experts is [8]: a whole number is needed"),
        ({"num_experts": 10**30}, "it must be at most"),
        ({"num_experts": 10**5000}, "a number of about 5001 digits: it must be at most"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000: it must be at most"),
        ({"num_local_experts": 4}, "num_experts is 8 but num_local_experts is 4: they must agree"),
        ({"num_key_value_heads": 3}, "it must divide num_attention_heads (4)"),
        ({"num_attention_heads": 6}, "it must divide hidden_size (64)"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes': true or false is needed"),
        ({"attention_bias": 1}, "attention_bias is 1: true or false is needed"),
        ({"hidden_act": "silo"}, "hidden_act is 'silo': allowed are 'silu' (did you mean 'silu'?)"),
        ({"mlp_only_layers": 3}, "mlp_only_layers is 3: a list is needed"),
        ({"mlp_only_layers": ["0"]}, "mlp_only_layers holds '0': whole numbers from 0 to 2"),
        ({"torch_dtype": "float8"}, "torch_dtype"),
        ({"torch_dtype": {}}, "torch_dtype"),
        ({"model_type": "qwen3_mo"}, "did you mean 'qwen3_moe'?"),
        ({"model_type": "no such model"}, "which is not read; `moeplan families` lists all"),
        ({"model_type": ["qwen3_moe"]}, "model_type is ['qwen3_moe'], which is not read"),
        ({"model_type": DROP}, "key model_type is missing"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], said: str) -> None:
    assert said in refused(changed(**changes))


@pytest.mark.parametrize(
    "key",
    [
        "n_shared_experts",
        "n_routed_experts",
        "moe_topk",
        "shared_expert_intermediate_size",
        "num_nextn_predict_layers",
        "q_lora_rank",
        "layer_group_size",
        "mamba_d_state",
        "sliding_window_pattern",
        "expert_ffn_hidden_size",
        "router_bias",
        "dense_layers",
        "index_topk",
        "is_encoder_decoder",
    ],
)
def test_an_unread_key_that_bears_on_the_model_is_refused(key: str) -> None:
    said = refused({**SMALL, key: 2})
    assert said.startswith(f"config.json: {key} is 2: ")
    for off in (None, False, 0):  # said to be absent
        assert read_config({**SMALL, key: off}, "config.json").unread == ()


def test_bearing_is_looked_for_inside_unread_objects() -> None:
    said = refused({**SMALL, "talker": {"depth": {"num_hidden_layers": 4}}})
    assert said.startswith("config.json: talker is {'depth': ")
    assert read_config({**SMALL, "talker": {"voice": "low"}}, "config.json").unread == ("talker",)


def test_an_unknown_key_without_bearing_is_reported() -> None:
    spec = read_config({**SMALL, "favourite_colour": "blue"}, "config.json")
    assert spec.unread == ("favourite_colour",)


def test_a_near_miss_of_an_optional_key_is_refused_even_where_it_says_none() -> None:
    kimi = load("moonshotai__Kimi-K2-Instruct")
    assert kimi["num_nextn_predict_layers"] == 0  # the default of the class is 1
    kimi["num_nextn_predict_layer"] = kimi.pop("num_nextn_predict_layers")
    assert "did you mean 'num_nextn_predict_layers'?" in refused(kimi)
    spelt = {**SMALL, "head_dims": 32}
    assert "did you mean 'head_dim'?" in refused(spelt)


def test_keys_of_one_spelling_twice_must_agree() -> None:
    config = load("openai__gpt-oss-20b")
    assert config["experts_per_token"] == config["num_experts_per_tok"]
    assert "must agree" in refused({**config, "experts_per_token": 3})


def test_a_class_of_another_family_is_a_contradiction() -> None:
    said = refused({**SMALL, "architectures": ["Qwen2MoeForCausalLM"]})
    assert "architectures names Qwen2MoeForCausalLM, of qwen2_moe" in said
    for name in ("Qwen3MoeForCausalLM", "MyOwnModel", "Qwen3MoeForSequenceClassification"):
        read_config({**SMALL, "architectures": [name]}, "config.json")


def test_nested_objects_are_named_with_their_keys() -> None:
    config = base("qwen3_5_moe")
    assert "text_config.hidden_size" in refused(
        merged(config, {"text_config": {"hidden_size": "wide"}})
    )
    assert "text_config is [1]: an object of keys is needed" in refused(
        {**config, "text_config": [1]}
    )
    assert "text_config is missing" in refused({**config, "text_config": None})
    assert "text_config.moe_topk is 4" in refused(merged(config, {"text_config": {"moe_topk": 4}}))


def test_what_is_not_an_object_of_keys_is_refused() -> None:
    junks: tuple[Any, ...] = ([], "x", 3, None, {1: 2})
    for junk in junks:
        with pytest.raises(UserError, match="an object of keys is needed"):
            read_config(junk, "config.json")


def test_values_are_shown_on_one_short_line() -> None:
    for value in ("a\nb" * 100, [1] * 1000, {"k": "v" * 500}, 10**4000, math.inf, -(10**50)):
        assert len(shown(value)) <= 60
        assert "\n" not in shown(value)
    spec = read_config({**SMALL, "colour\nof the \x1b[31msky": 1}, "config.json")
    assert all(name.isprintable() for name in spec.unread)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, 1e300, "1", True])
def test_a_real_number_is_finite_and_a_number(value: Any) -> None:
    with pytest.raises(UserError, match=r"config\.json: routed_scaling_factor is"):
        Config({"routed_scaling_factor": value}, "config.json").number("routed_scaling_factor")
    assert Config({"a": 2}, "config.json").number("a") == 2.0


def test_a_key_read_twice_keeps_its_source() -> None:
    c = Config({"num_experts": 8}, "config.json")
    for quantity in (c.int("num_experts", symbol="E"), c.int("num_experts", symbol="E")):
        assert quantity.source is not None
        assert (quantity.source.kind, quantity.source.where) == ("config", "num_experts")


# ------------------------------------------------------------------- keys renamed by other tools
def test_a_file_with_the_hubs_keys_reads_as_the_original() -> None:
    theirs, real = (load(f"Qwen__Qwen3-235B-A22B{end}") for end in (".infersim", ""))
    groups = [fingerprint(read_config(config, "config.json"))[0] for config in (theirs, real)]
    assert groups[0] == groups[1]


def test_a_file_with_renamed_keys_is_refused_by_name_or_read_rightly() -> None:
    theirs, real = (load(f"deepseek-ai__DeepSeek-V3{end}") for end in (".infersim", ""))
    assert "n_routed_experts" not in theirs
    seen = outcome(theirs)
    if isinstance(seen, str):
        assert "n_routed_experts" in seen
        assert "did you mean 'num_routed_experts'?" in seen
    else:
        assert fingerprint(seen) == fingerprint(read_config(real, "config.json"))


# ---------------------------------------------------------------------------- broken real files
def _real() -> dict[str, dict[str, Any]]:
    """Every file of the reference material that is read, by name."""
    found = {}
    for path in sorted(SHARED.glob("*.json")):
        config = json.loads(path.read_text())
        if config.get("model_type") in FAMILIES:
            try:
                read_config(config, path.stem)
            except UserError:  # contradicts itself as released
                continue
            found[path.stem] = config
    return found


REAL = _real() or {"small": SMALL}


def _places(config: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in config.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from _places(value, (*above, key))


def _put(config: Mapping[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """`config` with another value (or none: DROP) at a place."""
    out = dict(config)
    if len(place) > 1:
        out[place[0]] = _put(out[place[0]], place[1:], value)
    elif value is DROP:
        out.pop(place[0], None)
    else:
        out[place[0]] = value
    return out


def _rename(config: Mapping[str, Any], place: tuple[str, ...], name: str) -> dict[str, Any]:
    value: Any = config
    for key in place:
        value = value[key]
    return _put(_put(config, place, DROP), (*place[:-1], name), value)


def _typos(key: str) -> Iterator[str]:
    half = len(key) // 2
    yield key[:half] + key[half + 1 :]
    yield key[:half] + key[half] + key[half:]
    yield key[: half - 1] + key[half] + key[half - 1] + key[half + 1 :]
    yield "_" + key
    yield key + "s"
    yield key.upper()


@pytest.mark.parametrize("name", REAL)
def test_a_typo_in_any_key_is_refused_or_changes_nothing(name: str) -> None:
    whole = fingerprint(read_config(REAL[name], name))
    for place in _places(REAL[name]):
        for typo in _typos(place[-1]):
            seen = outcome(_rename(REAL[name], place, typo))
            if isinstance(seen, ModelSpec):
                assert fingerprint(seen) == whole, f"{'.'.join(place)} as {typo}"


@pytest.mark.parametrize("name", [n for n, c in REAL.items() if c["model_type"] not in DENSE])
def test_no_moe_file_reads_as_a_dense_model(name: str) -> None:
    for dense in DENSE:
        for config in (REAL[name], _put(REAL[name], ("architectures",), DROP)):
            refused({**config, "model_type": dense})


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**63, 10**13, 10**9, 257, 129]),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-2, 300) | st.text(max_size=3) | st.none(), max_size=4),
    st.dictionaries(st.text(max_size=4), st.integers() | st.none(), max_size=2),
    st.recursive(st.none(), lambda inner: st.lists(inner, max_size=2), max_leaves=5),
)
NEW_KEYS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["num_experts", "n_group", "head_dim", "layer_types", "kv_lora_rank"]),
    st.tuples(
        st.sampled_from(["moe_", "num_", "n_", "shared_", "router_", "expert_", ""]),
        st.sampled_from(["experts", "size", "layers", "topk", "bias", "dim", "heads"]),
    ).map("".join),
)


@st.composite
def broken(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A real file with one to three mistakes."""
    name = draw(st.sampled_from(sorted(REAL)))
    config = dict(REAL[name])
    for _ in range(draw(st.integers(1, 3))):
        places = [p for p in _places(config) if p != ("model_type",)]
        place = draw(st.sampled_from(places))
        match draw(st.sampled_from(["drop", "rename", "value", "swap", "insert"])):
            case "drop":
                config = _put(config, place, DROP)
            case "rename":
                config = _rename(config, place, draw(NEW_KEYS))
            case "value":
                config = _put(config, place, draw(JUNK))
            case "swap":
                other = draw(st.sampled_from(places))
                value: Any = config
                for key in other:
                    value = value[key]
                config = _put(config, place, value)
            case _:
                config = _put(config, (*place[:-1], draw(NEW_KEYS)), draw(JUNK))
    return name, config


@settings(max_examples=1500, suppress_health_check=[HealthCheck.too_slow])
@given(broken())
def test_a_broken_file_is_a_model_or_a_sentence(case: tuple[str, dict[str, Any]]) -> None:
    name, config = case
    seen = outcome(config)
    if isinstance(seen, str):
        assert seen.startswith("config.json: ")
        assert "\n" not in seen
        return
    if REAL[name]["model_type"] not in DENSE:
        assert seen.moe is not None
    _adds_up(seen)


def _adds_up(spec: ModelSpec) -> None:
    """Every formula of a model that was read can be evaluated, and every size is sensible."""
    work = Workload("prefill", B=1, S=64, C=64)
    for group in spec.groups:
        for block in group.blocks:
            for weight in block.weights():
                sizes = [evaluate(dim, block.values) for dim in (*weight.dims, weight.copies)]
                assert all(isinstance(size, int) and size >= 1 for size in sizes), weight
                active = evaluate(weight.active, block.values)
                assert 0 < active <= evaluate(weight.copies, block.values)
            if group.role == "model":
                values = block.environment(work)
                for op in block.rows(work):
                    assert evaluate(op.flops, values) >= 0
            for entry in block.cache():
                assert evaluate(entry.per_token, block.values) >= 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"model_type": "qwen3_mo"}, "text_config.model_type is 'qwen3_mo'.*did you mean"),
        (
            {"model_type": "llava"},
            "'llava', a text part that is not read",
        ),
        ({"model_type": "mixtral", "text_config": {}}, "text part inside of a text part"),
        ({"model_type": "mixtral"}, "key text_config.num_hidden_layers|text_config.hidden_size"),
        ({}, "key text_config.model_type is missing"),
        (None, "key text_config is missing"),
    ],
)
def test_text_parts_that_are_not_read(text: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_config({"model_type": "llava", "text_config": text}, "file")
