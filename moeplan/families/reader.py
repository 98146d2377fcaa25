"""Reading a `config.json` at the door: nothing unread, nothing guessed.

A family takes each key through a `Config`, which remembers what was read and where, checks it, and
returns a `Quantity` that carries its key. `Config.finish` then looks at the keys nobody read:
those that bear on the architecture are an error, the rest are reported unless known to be
irrelevant to what moeplan counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias

from moeplan.errors import UserError, near_miss
from moeplan.quantity import Quantity, Source

__all__ = ["Config", "shown"]

_MISSING = object()
_Int: TypeAlias = int  # inside Config, `int` is a method

# Far above any model: they keep a slip of the keyboard from exhausting memory or overflowing.
_MOST = 10**12
_MOST_LAYERS = 10_000

# Keys about training, generation, tokens and book-keeping: they change no count and no shape.
_IRRELEVANT = re.compile(
    r"""^(_.*|architectures|auto_map|.*dropout.*|.*_pdrop|layerdrop|.*_layerdrop|.*token_(id|index|ids)
    |transformers_version|torch_dtype|dtype|initializer_.*|init_.*|use_cache|cache_implementation
    |output_(router_logits|attentions|hidden_states)|return_dict.*|problem_type|id2label|label2id
    |.*aux_loss.*|.*jitter.*|.*_loss_(coef|weight|lambda)|z_loss.*|router_z.*|seq_aux|aux_loss_alpha
    |rms_norm_eps|layer_norm_eps(ilon)?|layernorm_eps(ilon)?|norm_eps|norm_epsilon|hc_eps
    |rope_.*|.*rope_theta|.*rope_parameters|.*rotary.*|max_position_embeddings
    |original_max_position_embeddings|initial_context_length|max_seq_(len|length)
    |max_sequence_length|max_window_layers|pretraining_tp|ep_size|chunk_size_feed_forward
    |attn_implementation|_attn_implementation|(moe|experts)_implementation|gradient_checkpointing|use_.*_kernels?|use_flash.*
    |scale_embedding|(embedding|residual|attention|logits|output|mup)_multiplier.*|logits_scaling|.*softcap.*|mscale.*|task_specific_params
    |name_or_path|license|tags|temperature|top_p|do_sample|bad_words.*|is_decoder|prefix
    |finetuning_task|pruned_heads|tie_encoder_decoder|torchscript|moe_capacity.*|.*capacity.*
    |.*token_dropping|moe_drop_tokens|clip_qkv|.*swiglu_limit|rescale_.*|n_ctx
    |top_k|typical_p|num_beam.*|num_return_sequences|.*no_repeat_ngram_size|(min|max)_length
    |.*_penalty|early_stopping|.*suppress_tokens|remove_invalid_values|use_bfloat16|tf_legacy_loss
    |output_scores|tokenizer_class|unk_token|sep_token|model_max_length|for_causal_lm|embd_pdrop)$""",
    re.VERBOSE,
)
# Keys that name the shape of a model; unread and set, they may hide parameters.
_BEARING = re.compile(
    r"expert|moe|router|rout|top_?k|mixture|sparse|shared|n_group|nextn|mtp|lora|latent|indexer|"
    r"index_|num_.*(head|layer|hidden)|_dim$|_size$|ffn|intermediate|layer_types|mamba|ssm|conv|"
    r"linear_|sliding|window|attn_layer|dense|tie_word|bias|gate|qk_norm|sink|altup|laurel|mlp|"
    r"^n_(head|layer|embd)|^d_(model|ff|kv|inner)|kv_|^quantization$|hybrid|recurrent|no_rope|chunk|"
    r"encoder_decoder|cross_attention"
)


class Config:
    """A mapping of keys with a name for messages; `path` tells the user which file."""

    def __init__(self, data: Any, path: str, *, prefix: str = "", origin: str = "config") -> None:
        if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
            place = f"{path}: {prefix.removesuffix('.')}" if prefix else path
            raise UserError(f"{place} is {shown(data)}: an object of keys is needed")
        self.data: Mapping[str, Any] = data
        self.path = path
        self.prefix = prefix
        self.origin = origin
        self.outer: Config | None = None  # the file that this part was taken out of by a wrapper
        self.read: set[str] = set()
        self._together: list[tuple[str, ...]] = []  # names of one number, all given
        self._absent: set[str] = set()  # asked for, not found under any name
        self.notes: list[str] = []
        self._children: list[Config] = []

    # ------------------------------------------------------------------ errors
    def where(self, key: str) -> str:
        """File and key as the user sees them."""
        return f"{self.path}: {self.prefix}{_printable(key)}"

    def fail(self, key: str, problem: str) -> UserError:
        """An error about a key (to be raised by the caller)."""
        return UserError(f"{self.where(key)} {problem}")

    def _missing(self, keys: Sequence[str]) -> UserError:
        unread = [k for k in self.data if k not in self.read]
        hint = next((h for h in (near_miss(k, unread) for k in keys) if h), "")
        names = " or ".join(keys)
        return UserError(f"{self.path}: key {self.prefix}{names} is missing{hint}")

    # ------------------------------------------------------------------ access
    def __contains__(self, key: str) -> bool:
        """Whether a key is present and not null; one that is not has been looked for."""
        present = self.data.get(key) is not None
        if not present:
            self._absent.add(key)
        return present

    def raw(self, *keys: str, default: Any = _MISSING) -> tuple[str, Any]:
        """The first of `keys` that is present and not null; all given must agree."""
        found = [(k, self.data[k]) for k in keys if self.data.get(k) is not None]
        self.read.update(k for k in keys if k in self.data)
        if not found:
            self._absent.update(keys)
            if default is _MISSING:
                raise self._missing(keys)
            return keys[0], default
        key, value = found[0]
        if len(found) > 1:
            self._together.append(tuple(self.prefix + k for k, _ in found))
        for other, second in found[1:]:
            if not _same(second, value):
                problem = f"is {shown(value)} but {other} is {shown(second)}: they must agree"
                raise self.fail(key, problem)
        return key, value

    def int(
        self,
        *keys: str,
        default: Any = _MISSING,
        symbol: str = "",
        least: _Int = 1,
        most: _Int | None = None,
    ) -> Quantity:
        """A whole number; a default is recorded as an assumption (the family's own default)."""
        key, value = self.raw(*keys, default=default)
        given = key in self
        if isinstance(value, Quantity):
            return value.named(symbol or value.symbol)
        if isinstance(value, bool) or not isinstance(value, int):
            if not (isinstance(value, float) and value.is_integer()):
                raise self.fail(key, f"is {shown(value)}: a whole number is needed")
            value = int(value)
        if most is None:
            most = _MOST_LAYERS if re.search("layer|nextn|mtp", key) else _MOST
        if value < least or value > most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise self.fail(key, f"is {shown(value)}: it must be {bound}")
        return self._quantity(key, value, symbol, given)

    def optional(self, *keys: str, symbol: str = "", least: _Int = 1) -> Quantity | None:
        """A whole number, or None where the key is absent, null or zero."""
        key, value = self.raw(*keys, default=None)
        if value is None or value is False or value == 0:
            return None
        return self.int(key, symbol=symbol, least=least)

    def number(self, *keys: str, default: Any = _MISSING) -> float:
        """A real number."""
        key, value = self.raw(*keys, default=default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fail(key, f"is {shown(value)}: a number is needed")
        if not abs(value) <= _MOST:  # catches NaN and infinities too
            raise self.fail(key, f"is {shown(value)}: it must be between -{_MOST} and {_MOST}")
        return float(value)

    def flag(self, *keys: str, default: Any = _MISSING) -> bool:
        """true or false."""
        key, value = self.raw(*keys, default=default)
        if not isinstance(value, bool):
            raise self.fail(key, f"is {shown(value)}: true or false is needed")
        return value

    def choice(self, *keys: str, allowed: Iterable[str], default: Any = _MISSING) -> str:
        """One of a few words."""
        key, value = self.raw(*keys, default=default)
        allowed = list(allowed)
        if not isinstance(value, str) or value not in allowed:
            names = ", ".join(repr(a) for a in allowed)
            hint = near_miss(value, allowed) if isinstance(value, str) else ""
            raise self.fail(key, f"is {shown(value)}: allowed are {names}{hint}")
        return value

    def list(self, *keys: str, length: _Int | None = None, default: Any = _MISSING) -> Any:
        """A list, of a given length where one is demanded."""
        key, value = self.raw(*keys, default=default)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)):
            raise self.fail(key, f"is {shown(value)}: a list is needed")
        if length is not None and len(value) != length:
            raise self.fail(key, f"has {len(value)} entries: {length} are needed, one a layer")
        return list(value)

    def per_layer(
        self, *keys: str, layers: _Int, default: Any = _MISSING, symbol: str = "", least: _Int = 1
    ) -> tuple[Quantity, ...]:
        """A whole number for each layer: a list of them, or one that holds for all."""
        key, value = self.raw(*keys, default=default)
        if not isinstance(value, (list, tuple)):
            return (self.int(*keys, default=default, symbol=symbol, least=least),) * layers
        out = []
        for place in self.list(key, length=layers):
            if isinstance(place, bool) or not isinstance(place, int) or place < least:
                problem = f"holds {shown(place)}: whole numbers of at least {least} are needed"
                raise self.fail(key, problem)
            out.append(self._quantity(key, place, symbol, given=True))
        return tuple(out)

    def indices(self, key: str, below: _Int) -> frozenset[_Int]:
        """A list of places, each from 0 to `below` - 1; absent or null means none."""
        places = self.list(key, default=None) or []
        for place in places:
            if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < below:
                problem = f"holds {shown(place)}: whole numbers from 0 to {below - 1} are needed"
                raise self.fail(key, problem)
        return frozenset(places)

    def sub(self, key: str, *, required: bool = True) -> Config | None:
        """A nested object, read with the same care."""
        value = self.data.get(key)
        self.read.add(key)
        if value is None:
            if required:
                raise self._missing([key])
            return None
        child = Config(value, self.path, prefix=f"{self.prefix}{key}.", origin=self.origin)
        self._children.append(child)
        return child

    def expect(self, key: str, allowed: Sequence[Any], why: str) -> None:
        """Refuse a value of an optional key that this family's rows do not describe."""
        _, value = self.raw(key, default=None)
        if value is not None and not any(_same(value, a) for a in allowed):
            names = ", ".join(repr(a) for a in allowed)
            raise self.fail(key, f"is {shown(value)}: {why}; understood is {names}")

    def ignore(self, *keys: str) -> None:
        """Keys that a family knows and that change nothing counted."""
        self.read.update(keys)

    def note(self, text: str) -> None:
        """An assumption in words."""
        self.notes.append(text)

    def _quantity(self, key: str, value: Any, symbol: str, given: bool) -> Quantity:
        if given:
            source = Source("config", f"{self.prefix}{key}")
            if self.origin != "config":
                source = Source("config", f"{self.prefix}{key} ({self.origin})")
        else:
            source = Source("assumed", f"{self.prefix}{key} is absent: the family's default")
        return Quantity.given(value, symbol=symbol or key, source=source)

    # ------------------------------------------------------------------ the end
    def known(self) -> frozenset[str]:
        """Every key that was looked for, present or not, with those of nested objects."""
        here = {self.prefix + key for key in self.read | self._absent}
        return frozenset(here).union(*(child.known() for child in self._children))

    def together(self) -> Sequence[tuple[str, ...]]:
        """Keys that must agree, since each of them is given for the same number."""
        below = (child.together() for child in self._children)
        return [*self._together, *(keys for found in below for keys in found)]

    def finish(self) -> tuple[str, ...]:
        """Refuse unread keys that bear on the model or misspell one that was looked for.

        Returns the others that are not known.
        """
        unread: list[str] = []
        for key, value in self.data.items():
            if key in self.read:
                continue
            # a value that says "none" is misspelt like any other: the default may be something
            meant = get_close_matches(key.lower(), sorted(self._absent), n=1, cutoff=0.8)
            inert = value is None or value is False or _same(value, 0) or value in ([], {}, "")
            known = _IRRELEVANT.match(key) is not None
            bearing = not known and _bears(key, value)
            if meant or (bearing and not inert):
                hint = near_miss(key, meant or self.read - set(self.data))
                raise self.fail(key, f"is {shown(value)}: this family does not read it{hint}")
            if not (known or bearing):
                unread.append(self.prefix + _printable(key))
        for child in self._children:
            unread += child.finish()
            self.notes += child.notes
        return tuple(unread)


def _same(a: Any, b: Any) -> bool:
    """Equal, and not a truth value on one side only (Python's True equals 1)."""
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _bears(key: str, value: Any) -> bool:
    """Whether a key, or one inside an unread object, names the shape of a model."""
    if _BEARING.search(key):
        return True
    nested = value.items() if isinstance(value, Mapping) else ()
    return any(isinstance(k, str) and _bears(k, v) for k, v in nested)


def _printable(key: str) -> str:
    """A key on one line, whatever the file holds."""
    return key if key.isprintable() and len(key) <= 60 else shown(key)


def shown(value: Any) -> str:
    """A value as messages show it, cut where it is long."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _MOST**2:
        return f"a number of about {int(math.log10(abs(value))) + 1} digits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
