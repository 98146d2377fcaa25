"""FLOPs against torch's own counter, over the models that transformers builds."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from moeplan.estimation.flops import flops, forward
from moeplan.estimation.fold import lines
from moeplan.families import read_config
from moeplan.model.latent_attention import LatentAttention
from moeplan.model.spec import Group, ModelSpec
from moeplan.model.workload import Workload
from moeplan.presets import preset
from tests.families.oracle_cases import merged
from tests.meta import MODELS, TWO, Counts, counted, grouped, meta_model, shortened, tokens
from tests.oracle import oracle, their_config
from tests.reading import spec_of

# Two differences are known. transformers' Llama 4 runs every expert over every token. Its linear
# attention is another algorithm than the kernels': what a row of kind "scan" costs is tested with
# the block itself.
EVERY_EXPERT = ("llama4", "llama4_text")


def _ours(spec: ModelSpec, work: Workload) -> Counts:
    """The same from the rows."""
    found: dict[tuple[str, int, str], int] = defaultdict(int)
    for line in lines(spec, work):
        if line.flops:
            kind = {"attention": "scores", "scan": "scan"}.get(line.op.kind, line.op.component)
            stack = "encoder" if line.group.role == "encoder" else "decoder"
            for index in line.group.indices or (-1,):
                found[stack, index, kind] += line.flops
    return dict(found)


@pytest.mark.oracle
@pytest.mark.parametrize("name", MODELS)
def test_prefill_as_torch_counts_it(name: str) -> None:
    oracle()
    spec_of(name)
    config = shortened(name, MODELS[name])
    spec = read_config(config, name)
    theirs, whole = counted(meta_model(config), **tokens(2, 128, 128), use_cache=False)
    assert sum(theirs.values()) == whole
    if spec.family in EVERY_EXPERT:
        assert spec.moe is not None
        spare = spec.moe.values["E"] // spec.moe.values["k"]
        theirs = {k: n // spare if k[2] == "routed_experts" else n for k, n in theirs.items()}
    ours = _ours(spec, Workload("prefill", B=2, S=128, C=128, mask="full"))
    assert _without_scans(ours) == _without_scans(theirs)


def _without_scans(counts: Counts) -> Counts:
    return {key: number for key, number in counts.items() if key[2] != "scan"}


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mixtral-8x7b", TWO),
        ("qwen3-30b-a3b", TWO),
        ("llama-3.1-8b", TWO),
        # a window shorter than the context: its layer sees 16 keys, the other one all
        ("gpt-oss-20b", MODELS["gpt-oss-120b"] | {"sliding_window": 16}),
    ],
)
def test_decoding_as_torch_counts_it(name: str, changes: dict[str, Any]) -> None:
    oracle()
    from transformers import DynamicCache

    config = merged(preset(name).config, changes)
    model = meta_model(config)
    cache = DynamicCache(config=model.config)
    before, context = tokens(3, 39, 39), 40
    model(**before, past_key_values=cache, use_cache=True)
    step = tokens(3, 1, context)
    del step["attention_mask"]
    masks = _masks(model.config, context)
    theirs, _ = counted(model, **step, attention_mask=masks, past_key_values=cache)
    ours = _ours(read_config(config, name), Workload("decode", B=3, S=1, C=context))
    assert ours == theirs


def _masks(config: Any, context: int) -> Any:
    """One mask, or one of each kind of layer."""
    import torch

    def mask(seen: int) -> Any:
        return torch.zeros(3, 1, 1, seen, dtype=torch.bfloat16, device="meta")

    kinds = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" not in kinds:
        return mask(context)
    window = min(context, config.sliding_window)
    return {"full_attention": mask(context), "sliding_attention": mask(window)}


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["mixtral-8x7b", "llama-3.1-8b", "deepseek-v3", "gpt-oss-120b"])
def test_training_is_three_times_the_forward_as_torch_counts_it(name: str) -> None:
    oracle()
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config = merged(preset(name).config, MODELS[name])
    model = meta_model(config)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: grouped})
    with counter:
        model(**tokens(1, 128, 128), use_cache=False).logits.sum().backward()
    section = flops(read_config(config, name), 128, "full")
    assert 128 * section["training_per_token"].value == counter.get_total_flops()


TINY_DBRX = {
    "d_model": 64,
    "n_layers": 2,
    "n_heads": 4,
    "vocab_size": 100,
    "attn_config": {"kv_n_heads": 2},
    "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 6, "moe_top_k": 3},
}
TINY_SWITCH = {
    "d_model": 64,
    "d_ff": 96,
    "d_kv": 16,
    "num_heads": 4,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 2,
    "vocab_size": 100,
}


@pytest.mark.oracle
def test_dbrx_as_torch_counts_it() -> None:
    """Its class loops over the experts that were hit, so a small model is run for real."""
    oracle()
    import torch
    from transformers import AutoModelForCausalLM

    config = merged(preset("dbrx").config, TINY_DBRX)
    model = AutoModelForCausalLM.from_config(their_config(config), attn_implementation="eager")
    theirs, _ = counted(model, input_ids=torch.randint(100, (2, 24)), use_cache=False)
    ours = _ours(read_config(config, "dbrx"), Workload("prefill", B=2, S=24, C=24, mask="full"))
    assert ours == theirs


@pytest.mark.oracle
def test_switch_as_torch_counts_it() -> None:
    """An encoder over 40 source tokens and a decoder over 24, of which none exceeds a capacity."""
    oracle()
    import torch
    from transformers import AutoModelForSeq2SeqLM

    config = merged(preset("switch-base-8").config, TINY_SWITCH)
    model = AutoModelForSeq2SeqLM.from_config(their_config(config), attn_implementation="eager")
    inputs = {
        "input_ids": torch.randint(100, (2, 40)),
        "decoder_input_ids": torch.randint(100, (2, 24)),
    }
    theirs, _ = counted(model, **inputs, use_cache=False)
    work = Workload("prefill", B=2, S=24, C=24, X=40, mask="full")
    spec = read_config(config, "switch")
    assert _ours(spec, work) == theirs

    # decoding token 25: the encoder has run, and its keys and values are there
    encoded = model.get_encoder()(inputs["input_ids"])
    before = model(
        encoder_outputs=encoded, decoder_input_ids=inputs["decoder_input_ids"], use_cache=True
    )
    theirs, _ = counted(
        model,
        encoder_outputs=encoded,
        decoder_input_ids=torch.randint(100, (2, 1)),
        past_key_values=before.past_key_values,
        use_cache=True,
    )
    assert _ours(spec, Workload("decode", B=2, S=1, C=25, X=40)) == theirs


@pytest.mark.oracle
def test_absorbed_latent_attention_as_torch_counts_it() -> None:
    """Decoding over the latents, written out by hand (DeepSeek-V2, arXiv 2405.04434, 2.1.2)."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    B, C, D, H, rq, r, dn, dr, dv = 3, 50, 256, 8, 96, 64, 32, 16, 24

    def weight(*shape: int) -> Any:
        return torch.empty(*shape, device="meta")

    x_BD, c_BCr, k_BCp = weight(B, D), weight(B, C, r), weight(B, C, dr)
    with FlopCounterMode(display=False) as counter:
        q_BHd = (x_BD @ weight(D, rq) @ weight(rq, H * (dn + dr))).view(B, H, dn + dr)
        x_BD @ weight(D, r + dr)  # the new token's latent and rotary key
        q_BHr = torch.einsum("bhn,hnr->bhr", q_BHd[..., :dn], weight(H, dn, r))
        s_BHC = torch.einsum("bhr,bcr->bhc", q_BHr, c_BCr)
        s_BHC = s_BHC + torch.einsum("bhp,bcp->bhc", q_BHd[..., dn:], k_BCp)
        o_BHr = torch.einsum("bhc,bcr->bhr", s_BHC, c_BCr)
        o_BHv = torch.einsum("bhr,hvr->bhv", o_BHr, weight(H, dv, r))
        o_BHv.reshape(B, H * dv) @ weight(H * dv, D)
    block = LatentAttention(D=D, H=H, rq=rq, rkv=r, dn=dn, dr=dr, dv=dv)
    spec = ModelSpec("mla", "mla", (Group("layer", (block,), prefix="{i}."),))
    assert forward(spec, Workload("decode", B=B, S=1, C=C)) == counter.get_total_flops()
