"""Estimates against the model that transformers builds without memory, and the command."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import moeplan.check as room
from moeplan import cli
from moeplan.check import Check, check
from moeplan.errors import UserError
from moeplan.load import load_config
from moeplan.model.ffn import MoE
from tests.check.files import EXPERTS, LAYERS, folder, mixtral, sharded

SMALL = (
    "Qwen__Qwen1.5-MoE-A2.7B-Chat",
    "ibm-granite__granite-3.1-3b-a800m-instruct",
    "openai__gpt-oss-20b",
)


def built(path: Path) -> Check:
    """The comparison with a built model, skipped where none can be built."""
    pytest.importorskip("torch", reason="needs torch's meta device")
    pytest.importorskip("transformers", reason="needs the model classes of transformers")
    return check(path)


@pytest.mark.oracle
@pytest.mark.parametrize("name", SMALL)
def test_published_configs(shared: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(shared / "configs" / f"{name}.json", tmp_path / "config.json")
    found = built(tmp_path)
    assert found.differences == []
    assert found.here is not None
    assert found.there.values == found.here.values
    assert found.label.startswith("built by transformers ")
    assert found.label.endswith(" on the meta device")


@pytest.mark.oracle
def test_a_written_config(tmp_path: Path) -> None:
    found = built(folder(tmp_path))
    assert found.equal
    assert found.there.tensors == len(mixtral())
    assert found.there.size is None


@pytest.mark.oracle
def test_mtp_modules_are_named_as_not_compared(tmp_path: Path) -> None:
    """transformers reads the key and builds no module: 2 norms, a projection, a layer, a norm."""
    config = {
        "model_type": "deepseek_v3", "hidden_size": 64, "intermediate_size": 96,
        "moe_intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "n_routed_experts": 8, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "q_lora_rank": 24,
        "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
        "first_k_dense_replace": 1, "vocab_size": 128, "num_nextn_predict_layers": 1,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    found = built(folder(tmp_path, None, config))
    assert found.equal
    (note,) = found.notes
    layer = sum(
        [
            24 * 64 + 24 + 4 * 24 * 24, 24 * 64 + 16 + 4 * 32 * 16, 64 * 64,  # attention
            8 * 64 + 8, (8 + 1) * 3 * 32 * 64,  # router with its bias, experts
            2 * 64,  # norms
        ]
    )  # fmt: skip
    assert f"{layer + 3 * 64 + 2 * 64 * 64:,} values of multi-token prediction" in note


@pytest.mark.oracle
def test_a_wrong_estimate_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        room, "load_config", lambda path: load_config(path).vary(MoE, E=EXPERTS + 1)
    )
    found = built(folder(tmp_path)).differences
    at = "model.layers.{0-2}.block_sparse_moe."
    assert [(d.kind, d.name, d.tensors) for d in found] == [
        *(("missing", f"{at}experts.{EXPERTS}.w{n}.weight", LAYERS) for n in (1, 2, 3)),
        ("shape", f"{at}gate.weight", LAYERS),
    ]


@pytest.mark.oracle
def test_a_family_that_only_transformers_knows(tmp_path: Path) -> None:
    config = {
        "model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100,
        "n_positions": 32,
    }  # fmt: skip
    found = built(folder(tmp_path, None, config))
    assert found.refusal is not None
    # tokens, positions, two layers of 12·D² + 13·D, the last norm; the head is tied
    layer = 12 * 64**2 + 13 * 64
    assert found.there.values == 100 * 64 + 32 * 64 + 2 * layer + 2 * 64


@pytest.mark.oracle
def test_code_of_a_model_is_never_executed(tmp_path: Path) -> None:
    folder(
        tmp_path, model_type="brand_new", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"}
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(UserError, match=r"no class for model_type 'brand_new'.*never executed"):
        built(tmp_path)
    folder(tmp_path, auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    assert built(tmp_path).equal
    assert not (tmp_path / "ran").exists()


@pytest.mark.oracle
@pytest.mark.parametrize(
    "change", [{"hidden_size": "wide"}, {"num_attention_heads": 0}, {"vocab_size": -5}]
)
def test_a_config_that_transformers_refuses_too(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="builds no model from it"):
        built(folder(tmp_path, **change))


def test_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in ("torch", "transformers"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            with pytest.raises(UserError, match=r"pip install 'moeplan\[check\]'") as error:
                check(folder(tmp_path))
            if missing == "torch":
                assert "torch is not installed" in str(error.value)
            assert "\n" not in str(error.value)


def test_files_need_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, missing, None)
    assert check(folder(tmp_path, mixtral())).equal


# --------------------------------------------------------------------------------- the command
def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["moeplan", "check", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_and_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    path = str(folder(tmp_path, mixtral()))
    assert run(monkeypatch, path) == 0
    assert "The estimate is equal, tensor by tensor" in capsys.readouterr().out
    folder(tmp_path, mixtral(), num_hidden_layers=2)
    assert run(monkeypatch, path) == 1
    assert "The estimate differs in 19 tensors" in capsys.readouterr().out
    folder(tmp_path, mixtral(), model_type="brand_new")
    assert run(monkeypatch, path) == 1
    out = capsys.readouterr().out
    assert "Counted without an estimate" in out
    assert f"{sum(1 for _ in mixtral())}" in out
    assert run(monkeypatch, str(tmp_path / "none")) == 2
    assert "no such file" in capsys.readouterr().err


def test_the_command_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sharded(folder(tmp_path, num_hidden_layers=2), mixtral())
    assert run(monkeypatch, str(tmp_path), "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["equal"], found["source"]["kind"]) == (False, "headers")
    assert found["differences"][0]["kind"] == "extra"
    assert sum(d["tensors"] for d in found["differences"]) == 19
    assert found["counted"]["tensors"] == len(mixtral())
    assert found["counted"]["bytes"] == found["by_dtype"]["BF16"]["bytes"]


@pytest.mark.parametrize("output", ["--markdown", "--csv"])
def test_the_command_in_other_forms(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: str,
) -> None:
    assert run(monkeypatch, str(folder(tmp_path, mixtral())), output) == 0
    assert "Totals" in capsys.readouterr().out
