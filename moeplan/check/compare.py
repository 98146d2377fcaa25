"""An estimate's tensors beside those of a source: which are missing, extra, or other ones.

Names are compared as they stand; what is left over, without the words that wrap the language model
(`short`); what is still left over, by the module that both sides divide differently (q, k and v in
one tensor, gate and up in one, the experts of a layer in one).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moeplan.check.differences import Difference, Found, gathered
from moeplan.check.sources import Source, SourceKind
from moeplan.check.tensors import Expected, Stored, expected, short, stored
from moeplan.model.spec import ModelSpec

__all__ = ["Check", "Totals", "check_tensors"]

# What a file may hold beside weights: values that follow from the config, scales of a cache.
_COMPUTED = re.compile(
    r"\.(rotary_emb\.inv_freq|slope_rate|(query|key|diagonal)_decay|[kv]_proj\.[kv]_scale"
    r"|[kv]_scale|[kv]_proj\.output_scale)$"
)
# Parts of a multimodal model that no estimate counts; only where it says that it left some out.
_OTHER_PARTS = re.compile(
    r"(^|\.)(vision\w*|visual\w*|embed_vision|audio\w*|embed_audio|image_newline|talker|code2wav"
    r"|speech\w*|multi_modal_projector|mm_projector|vit\w*|aligner)\."
)
# Parts of a module that one side may hold together and the other apart.
_TOGETHER = tuple(
    (re.compile(pattern), whole)
    for pattern, whole in (
        (
            r"\.experts\.(?:(?:expert_)?\d+\.)?(?:gate_up_proj|gate_proj|up_proj|gate|up|w1|w3|v1"
            r"|linear|linear_v)(?:\.weight)?$",
            ".experts[gate, up]",
        ),
        (
            r"\.experts\.(?:(?:expert_)?\d+\.)?(?:down_proj|down|w2|linear_1)(?:\.weight)?$",
            ".experts[down]",
        ),
        (r"\.(?:gate_proj|up_proj|gate_up_proj|w1|w3)\.(weight|bias)$", r"[gate, up].\1"),
        (
            r"\.(?:q_proj|k_proj|v_proj|qkv_proj|query_key_value|qkv|Wqkv|wqkv|W_pack)\.(weight|bias)$",
            r"[q, k, v].\1",
        ),
    )
)


@dataclass
class Totals:
    """What one side holds; None where it does not say.

    values: numbers stored, trained or not, without scales. dtypes: element type to (tensors,
    bytes) of a file.
    """

    tensors: int = 0
    values: int | None = 0
    size: int | None = 0
    dtypes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, int | None]:
        """The three totals, for JSON."""
        return {"tensors": self.tensors, "values": self.values, "bytes": self.size}


@dataclass
class Check:
    """The outcome. refusal: why there is no estimate, None where there is one.

    here: totals of the estimate, for what was compared; there: of everything in the source.
    by_name: tensors of which the source says no more than the name.
    notes: what was left out of the comparison, and rules that were used in it.
    """

    path: str
    kind: SourceKind
    label: str
    there: Totals
    here: Totals | None = None
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refusal: str | None = None
    by_name: int = 0

    @property
    def equal(self) -> bool:
        """Whether there is an estimate and nothing differs from it."""
        return self.refusal is None and not self.differences

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain values, for JSON."""
        return {
            "path": self.path,
            "source": {"kind": self.kind, "label": self.label},
            "equal": self.equal,
            "refusal": self.refusal,
            "estimate": None if self.here is None else self.here.to_dict(),
            "counted": self.there.to_dict(),
            "by_dtype": {
                dtype: {"tensors": number, "bytes": size}
                for dtype, (number, size) in sorted(self.there.dtypes.items())
            },
            "by_name_alone": self.by_name,
            "differences": [difference._asdict() for difference in self.differences],
            "notes": self.notes,
        }


def check_tensors(
    path: str, source: Source, spec: ModelSpec | None, refusal: str | None, bits: Iterable[int]
) -> Check:
    """Compare a source with an estimate, or count the source where there is none.

    bits: of packed integers, as the config names them.
    """
    held = stored(source.entries, bits)
    out = Check(path, source.kind, source.label, _counted(source, held), refusal=refusal)
    out.notes += source.notes
    if spec is not None:
        _Comparison(out, source, spec, held).run()
    return out


def _counted(source: Source, held: Mapping[str, Stored]) -> Totals:
    """Totals of a source; those that an index states stand in where it lists names only."""
    values = [one.elements for one in held.values()]
    sizes = [entry.size for entry in source.entries.values()]
    out = Totals(
        len(source.entries),
        sum(n for n in values if n is not None) if None not in values else source.total_parameters,
        sum(n for n in sizes if n is not None) if None not in sizes else source.total_size,
    )
    for entry in source.entries.values():
        if entry.dtype is not None and entry.size is not None:
            number, size = out.dtypes.get(entry.dtype, (0, 0))
            out.dtypes[entry.dtype] = number + 1, size + entry.size
    return out


class _Comparison:
    """One run: what is left over on either side gets less with each step."""

    def __init__(
        self, out: Check, source: Source, spec: ModelSpec, held: Mapping[str, Stored]
    ) -> None:
        self.out, self.source, self.spec = out, source, spec
        self.mine, self.real = expected(spec), dict(held)
        self.used: list[Expected] = []  # tensors of the estimate that the source has, or should
        self.found: list[Found] = []
        self.beside: int | None = 0  # bytes of the source that are no weights of the estimate

    def run(self) -> None:
        """Compare, and write differences, totals and notes into the outcome."""
        self._leave_out()
        self._pairs(lambda name: name)
        self._wrapped()
        self._together()
        self._left_over()
        self.out.here = Totals(
            len(self.used),
            sum(one.elements for one in self.used),
            None if self.source.kind == "transformers" else sum(one.size for one in self.used),
        )
        self.out.differences = gathered(self.found)
        self._stated()

    # ------------------------------------------------------------------------------- steps
    def _leave_out(self) -> None:
        """Take out what no estimate counts, and MTP modules of which the source has nothing."""
        computed = [name for name in self.real if _COMPUTED.search(f".{name}")]
        self._drop(computed, "computed from the config or scales of a cache, no weights")
        if self.spec.not_counted:
            others = [name for name in self.real if _OTHER_PARTS.search(name)]
            self._drop(others, f"not counted by the estimate: {'; '.join(self.spec.not_counted)}")
        self._first_names()
        modules = {name for name, one in self.mine.items() if one.role == "mtp"}
        names = {short(name) for name in self.real}
        if modules and not any(short(n) in names for n in modules):
            values = sum(self.mine[n].elements for n in modules if self.mine[n].tied is None)
            for name in modules:
                del self.mine[name]
            built = self.source.kind == "transformers"
            why = "which transformers does not build" if built else "of which the files hold none"
            self.out.notes.append(
                f"not compared: {values:,} values of multi-token prediction, {why}"
            )

    def _first_names(self) -> None:
        """A tensor that a file holds only under a name that is tied to it, under its own name."""
        for name, one in self.mine.items():
            if one.tied in self.mine and one.tied not in self.real and name in self.real:
                self.real[one.tied] = self.real.pop(name)
                self.out.notes.append(f"{one.tied} is stored as {name}")

    def _drop(self, names: list[str], why: str) -> None:
        if not names:
            return
        gone = [self.real.pop(name) for name in names]
        sizes = [one.size for one in gone]
        known = None if None in sizes else sum(n for n in sizes if n is not None)
        self.beside = None if known is None or self.beside is None else self.beside + known
        values = [one.elements for one in gone]
        words = "" if None in values else f", {sum(n for n in values if n is not None):,} values"
        self.out.notes.append(f"{why} ({_tensors(len(gone))}{words})")

    def _pairs(self, key: Any) -> int:
        """Compare tensors of equal keys, where a key is one tensor's on both sides."""
        mine, real = _unique(self.mine, key), _unique(self.real, key)
        shared = mine.keys() & real.keys()
        for word in shared:
            self._pair(mine[word], real[word])
        return len(shared)

    def _wrapped(self) -> None:
        before = next(iter(self.real), "")
        pairs = self._pairs(short)
        if pairs:
            self.out.notes.append(
                f"{_tensors(pairs)} compared without the leading words of their names, such as "
                f"{before}"
            )

    def _pair(self, mine: str, real: str) -> None:
        a, b = self.mine.pop(mine), self.real.pop(real)
        if a.tied is not None:
            self._again(mine, a, b)
            return
        self.used.append(a)
        self.out.by_name += b.shapes is None
        if b.shapes is not None and not _fits(a, b):
            there = " or ".join(str(list(shape)) for shape in b.shapes)
            self.found.append(Found("shape", mine, str(list(a.shape)), there))
        elif b.dtype is not None and not _same_format(a, b):
            self.found.append(
                Found("format", mine, f"{a.format.name}, {a.size:,} B", f"{b.dtype}, {b.size:,} B")
            )
        elif b.buffer is not None and b.buffer != a.buffer:
            words = {True: "not trained", False: "trained"}
            self.found.append(Found("format", mine, words[a.buffer], words[b.buffer]))

    def _again(self, name: str, a: Expected, b: Stored) -> None:
        """A tensor that is another one, stored a second time: its bytes count alone."""
        if self.beside is not None:
            self.beside += b.size if b.size is not None else a.size
        self.out.notes.append(f"{name} is stored again: it is {a.tied}")

    def _together(self) -> None:
        """Compare modules that both sides divide differently, by their numbers and width."""
        units: dict[str, tuple[list[str], list[str]]] = {}
        for side, names in enumerate((list(self.mine), list(self.real))):
            for name in names:
                for pattern, whole in _TOGETHER:
                    unit, found = pattern.subn(whole, short(name))
                    if found:
                        units.setdefault(unit, ([], []))[side].append(name)
                        break
        joined = 0
        for unit, (mine, real) in units.items():
            if mine and real and _whole(mine) != _whole(real):
                joined += 1
                self._unit(unit, [self.mine.pop(n) for n in mine], [self.real.pop(n) for n in real])
        if joined:
            words = "modules that" if joined > 1 else "module that"
            self.out.notes.append(f"{joined:,} {words} the two sides divide differently")

    def _unit(self, unit: str, mine: list[Expected], real: list[Stored]) -> None:
        self.used += mine
        if any(one.shapes is None for one in real):
            self.out.by_name += len(mine)
            return
        here = sum(one.elements for one in mine)
        there = sum(one.elements or 0 for one in real)
        shapes = [set(one.shape) for one in mine] + [
            set(one.shapes[0]) for one in real if one.shapes
        ]
        if here != there or not set.intersection(*shapes):
            self.found.append(Found("shape", unit, f"{here:,} values", f"{there:,} values"))
            return
        sizes = [one.size for one in real]
        size = sum(n for n in sizes if n is not None)
        if None not in sizes and size != sum(one.size for one in mine):
            own = f"{mine[0].format.name}, {sum(one.size for one in mine):,} B"
            self.found.append(Found("format", unit, own, f"{real[0].dtype}, {size:,} B"))

    def _left_over(self) -> None:
        for name, one in self.mine.items():
            if one.tied is None:
                self.used.append(one)
                self.found.append(Found("missing", name, str(list(one.shape)), ""))
        for name, there in self.real.items():
            shape = "" if there.shapes is None else str(list(there.shapes[0]))
            self.found.append(Found("extra", name, "", shape))

    def _stated(self) -> None:
        """Compare with what an index states of all files together, where no header says it."""
        here, stated = self.out.here, self.source.total_size
        assert here is not None
        if stated is None or here.size is None or self.out.differences:
            return
        sizes = [entry.size for entry in self.source.entries.values()]
        if None in sizes:
            if self.beside is None:
                self.out.notes.append("total_size of the index not compared: no header says all")
                return
            size, where = here.size + self.beside, "all tensors"
        else:
            size, where = sum(n for n in sizes if n is not None), "headers"
        if size != stated:
            self.out.differences.append(
                Difference("total", f"total_size of the index, {where}", len(self.used),
                           f"{size:,} B", f"{stated:,} B")
            )  # fmt: skip


_WHOLE = re.compile(
    r"\.(gate_up_proj|qkv_proj|query_key_value|qkv|Wqkv|wqkv|W_pack)(\.weight|\.bias)?$"
)
_ALL_EXPERTS = re.compile(r"\.experts\.(?!(expert_)?\d)")


def _whole(names: Iterable[str]) -> tuple[bool, bool]:
    """Whether names say that parts are one tensor, and that experts are."""
    return (
        any(_WHOLE.search(name) for name in names),
        any(_ALL_EXPERTS.search(name) for name in names),
    )


def _unique(names: Iterable[str], key: Any) -> dict[str, str]:
    """Key to name, for keys that one name has."""
    out: dict[str, str | None] = {}
    for name in names:
        word = key(name)
        out[word] = None if word in out else name
    return {word: name for word, name in out.items() if name is not None}


def _tensors(number: int) -> str:
    return f"{number:,} tensor" + ("s" if number != 1 else "")


# -------------------------------------------------------------------------------- one tensor
def _fits(a: Expected, b: Stored) -> bool:
    """Whether stored elements are a tensor of the estimate: stacked experts may stand in a row."""
    shapes = b.shapes or ()
    if a.shape in shapes:
        return True
    flat = (a.shape[0] * a.shape[1], *a.shape[2:]) if a.stacked and len(a.shape) > 1 else None
    return flat in shapes


_TYPES = {
    "fp32": ("F32",),
    "bf16": ("BF16",),
    "fp16": ("F16",),
    "fp8": ("F8_E4M3", "F8_E5M2"),
    "mxfp8": ("F8_E4M3", "F8_E5M2"),
    "mxfp4": ("U8", "I8", "F4"),
    "nvfp4": ("U8", "F4"),
    "int8": ("I8",),
    "int4": ("I32", "U8"),
}


def _same_format(a: Expected, b: Stored) -> bool:
    """Whether bytes, scales included, and the type of the elements are those of the format."""
    word = re.split(r"[-, ]", a.format.name)[0]
    types = _TYPES.get(word, ("I32",)) + (("I32",) if word.startswith("int") else ())
    return b.size == a.size and b.dtype in types
