"""OpenAI's privacy filter: gpt-oss' blocks as an encoder that gives every token a label."""

from __future__ import annotations

from dataclasses import replace

from moeplan.families.common import decoder, layer_groups, pre_norm
from moeplan.families.gpt_oss import experts, sink_attention
from moeplan.families.reader import Config
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity, Source

__all__ = ["openai_privacy_filter"]

_LABELS = 33  # one for "nothing", and four places in a span for each of eight kinds


def _labels(c: Config) -> Quantity:
    """Outputs of the head: the labels that the file names, or the class's own."""
    named = c.sub("id2label", required=False)
    if named is None:
        return c.int("num_labels", default=_LABELS, symbol="V")
    named.ignore(*named.data)
    source = Source("config", "entries of id2label")
    count = Quantity.given(len(named.data), symbol="V", source=source)
    given = c.optional("num_labels")
    if given is not None and given.value != count.value:
        raise c.fail("num_labels", f"is {given.value}, but id2label has {count.value} entries")
    return count


def openai_privacy_filter(c: Config) -> ModelSpec:
    """Read a config of the privacy filter: windows on both sides of a token, no cache, no head."""
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    window = c.int("sliding_window", default=128, symbol="W")
    mixer = replace(sink_attention(c, hidden, window), causal=False)
    moe = experts(c, hidden)
    groups = layer_groups(
        [("attention", "moe")] * int(layers.value),
        lambda kind: pre_norm(hidden, mixer, moe),
        count=layers,
    )
    return decoder(
        c,
        hidden,
        groups,
        name="openai_privacy_filter",
        head="score",
        head_bias=True,
        outputs=_labels(c),
        notes=("an encoder: one pass labels all tokens, so figures of decoding say nothing here",),
    )
