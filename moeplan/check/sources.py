"""Where tensors are read from: headers of safetensors files, an index, a model without memory.

Only headers are read, never the data of a tensor. Models are built from the classes of the
installed `transformers` alone: code that comes with a model is never executed.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from moeplan.check.tensors import BITS, Entry
from moeplan.errors import UserError
from moeplan.load import read_json

__all__ = ["INDEX", "Source", "SourceKind", "from_files", "from_model", "header", "packed_bits"]

SourceKind: TypeAlias = Literal["headers", "index", "transformers"]
INDEX = "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000  # the format's own limit, in bytes
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors$")
# Other files of a model's folder: another framework's copy of the same weights, adapters.
_OTHER = re.compile(r"^(consolidated|adapter|optimizer|training)")


class Source(NamedTuple):
    """Tensors by name, and where they were read. label: in words.

    total_size, total_parameters: what an index says of all files together.
    """

    kind: SourceKind
    label: str
    entries: dict[str, Entry]
    total_size: int | None = None
    total_parameters: int | None = None
    notes: tuple[str, ...] = ()


def from_files(folder: Path) -> Source | None:
    """What the checkpoint in a folder holds, None where there is none.

    Files that an index names and that are not there give names only. Raises UserError for a file
    that is no whole safetensors file, and for files that contradict each other.
    """
    index = folder / INDEX
    if index.is_file():
        return _indexed(index)
    files = sorted(f for f in folder.glob("*.safetensors") if f.is_file())
    own = [f for f in files if not _OTHER.match(f.name)]
    files = [f for f in own if f.name.startswith("model")] or own or files
    if not files:
        return None
    _all_shards(files)
    entries: dict[str, Entry] = {}
    for file in files:
        found = header(file)
        twice = next((name for name in found if name in entries), None)
        if twice is not None:
            raise UserError(f"{file}: tensor {twice} is in another file of the folder too")
        entries |= found
    return Source("headers", f"counted from safetensors headers of {_files(len(files))}", entries)


def _files(count: int) -> str:
    return f"{count} file" + ("s" if count != 1 else "")


def _all_shards(files: list[Path]) -> None:
    """Refuse a numbered set of files that is not whole."""
    sets: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if found := _SHARD.match(file.name):
            key = found["stem"], int(found["count"])
            sets.setdefault(key, set()).add(int(found["number"]))
    for (stem, count), numbers in sets.items():
        missing = sorted(set(range(1, count + 1)) - numbers)
        if missing:
            name = f"{stem}-{missing[0]:05}-of-{count:05}.safetensors"
            raise UserError(
                f"{files[0].parent}: {len(missing)} of {count} files are missing, {name} among them"
            )


def _indexed(index: Path) -> Source:
    data = read_json(index)
    names = data.get("weight_map")
    texts = isinstance(names, dict) and all(isinstance(file, str) for file in names.values())
    if not isinstance(names, dict) or not texts or not names:
        raise UserError(f"{index}: key weight_map is missing: it maps each tensor to its file")
    shards = sorted(set(names.values()))
    outside = next((s for s in shards if Path(s).name != s), None)
    if outside is not None:
        raise UserError(f"{index}: weight_map names {outside!r}, which is no file of the folder")
    here = {name: header(index.parent / name) for name in shards if (index.parent / name).is_file()}
    entries = {name: Entry() for name in names}
    for shard, found in here.items():
        listed = {name for name, file in names.items() if file == shard}
        for name in sorted(listed ^ set(found)):
            fault = "does not hold" if name in listed else "holds without being named for it"
            raise UserError(f"{index}: {shard} {fault} the tensor {name}")
        entries |= found
    whole = len(here) == len(shards)
    label = f"counted from safetensors headers of {_files(len(here))}"
    if not here:
        label = f"names read from {index.name}"
    elif not whole:
        label += f" of {len(shards)}, and names from {index.name}"
    total, parameters = _totals(index, data)
    return Source("headers" if here else "index", label, entries, total, parameters)


def _totals(index: Path, data: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """total_size and total_parameters of an index's metadata."""
    metadata = data.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise UserError(f"{index}: metadata is not an object")
    out: list[int | None] = []
    for key in ("total_size", "total_parameters"):
        value = metadata.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise UserError(f"{index}: metadata.{key} is {value!r}: a whole number is needed")
        out.append(value)
    return out[0], out[1]


# ------------------------------------------------------------------------------------- headers
def header(file: Path) -> dict[str, Entry]:
    """The tensors that a safetensors file lists in its header.

    The file starts with the header's length in 8 bytes, little-endian; a JSON object of names to
    element type, shape and place in the data follows. Raises UserError where the file's length or
    the places do not agree with the shapes: a download that stopped is found here.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(8)
            length = int.from_bytes(start, "little")
            held = file.stat().st_size - 8
            if len(start) < 8 or length > min(held, _LONGEST_HEADER):
                raise UserError(
                    f"{file}: no safetensors file: its header of {length:,} bytes does not fit "
                    f"into {held + 8:,} bytes"
                )
            text = opened.read(length)
    except OSError as problem:
        raise UserError(f"{file}: cannot be read ({problem})") from None
    try:
        data = json.loads(text, object_pairs_hook=lambda pairs: _once(file, pairs))
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{file}: its header is not valid JSON ({problem})") from None
    if not isinstance(data, dict):
        raise UserError(f"{file}: its header is not an object of tensors")
    places = [_place(file, name, of) for name, of in data.items() if name != "__metadata__"]
    _contiguous(file, places, held - length)
    return {name: entry for name, entry, _, _ in places}


def _once(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise UserError(f"{file}: its header names {twice} twice")
    return out


_Place: TypeAlias = tuple[str, Entry, int, int]


def _place(file: Path, name: str, of: Any) -> _Place:
    """Name, tensor, first byte and the one behind its last."""
    of = of if isinstance(of, dict) else {}
    dtype, shape, span = (of.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _whole(shape) or not _whole(span) or len(span) != 2:
        raise UserError(f"{file}: tensor {name} needs dtype, shape and data_offsets in the header")
    if dtype not in BITS:
        raise UserError(f"{file}: tensor {name} is of the unknown type {dtype!r}")
    size = -(-prod(shape) * BITS[dtype] // 8)
    first, last = span
    if last - first != size:
        raise UserError(
            f"{file}: tensor {name} has {last - first:,} bytes, but {dtype} of {list(shape)} "
            f"needs {size:,}"
        )
    return name, Entry(tuple(shape), dtype, size), first, last


def _whole(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _contiguous(file: Path, places: list[_Place], held: int) -> None:
    """Every byte of the data belongs to one tensor, and the file has all of them."""
    at = 0
    for name, _, first, last in sorted(places, key=lambda place: place[2:]):
        if first != at:
            raise UserError(
                f"{file}: tensor {name} starts at byte {first:,} of the data, not {at:,}"
            )
        at = last
    if at != held:
        what = "truncated" if held < at else "followed by something else"
        raise UserError(
            f"{file}: its header lists {at:,} bytes of data, the file holds {held:,}: it is {what}"
        )


def packed_bits(data: Any) -> Iterator[int]:
    """Bits of quantised elements that a config names anywhere in its quantisation keys."""
    if isinstance(data, dict):
        for key, value in data.items():
            if key in ("bits", "w_bit", "num_bits") and type(value) is int and 0 < value <= 16:
                yield value
            else:
                yield from packed_bits(value)
    elif isinstance(data, list):
        for value in data:
            yield from packed_bits(value)


# -------------------------------------------------------------------- models without memory
# Words that a config uses for an architecture that transformers has under another name.
_SAME = {"kimi_k2": "deepseek_v3"}
# Words that transformers uses for another architecture: Baidu's pre-training files of ERNIE 4.5
# say "ernie", which is a BERT there.
_FOREIGN = frozenset(("ernie",))
# Keys about how weights are stored and loaded: they change no shape, and `auto_map` names code.
_LOADING = frozenset(
    ("architectures", "auto_map", "compression_config", "dtype", "quantization_config",
     "torch_dtype", "transformers_version")
)  # fmt: skip

# Names of released files where transformers' own table of names does not lead back to them.
_RELEASED: dict[str, tuple[tuple[str, str], ...]] = {
    "deepseek_v4": (
        (r"^model\.embed_tokens\.", "embed."),
        (r"^model\.hc_head\.hc_", "hc_head_"),
        (r"\.attn\.norm\.", ".attn.kv_norm."),
    ),
}
# Experts without computation that transformers gives weights, which it never reads and no released
# file holds: the key that says how many experts compute.
_IDLE_EXPERTS = {"longcat_flash": "n_routed_experts"}


def from_model(data: Mapping[str, Any], path: str) -> Source:
    """The model that the installed transformers builds from a config on torch's meta device.

    It needs no memory and computes nothing. Tensors are named as transformers would save them, and
    have no element type, as the model is built without the config's quantisation. Raises UserError
    where torch or transformers is missing, or transformers has no class for the config.
    """
    try:
        import torch
        import transformers
    except ImportError as missing:
        raise UserError(
            f"{path}: no *.safetensors file and no {INDEX} lies beside it, and {missing.name} is "
            "not installed, with which the model could be built: pip install 'moeplan[check]'"
        ) from None
    version = f"transformers {transformers.__version__}"
    cls, config = _class_for(data, path, version)
    try:
        with _quiet(), torch.device("meta"):
            model = cls(config)
        trained, buffers, tied = _tensors(model)
        entries = {
            _released(data, name): Entry(tuple(value.shape), buffer=buffer)
            for values, buffer in ((trained, False), (buffers, True))
            for name, value in _hub_names(model, values).items()
        }
    except Exception as problem:  # whatever a model class raises, it is about this config
        raise UserError(_not_built(path, version, problem)) from None
    notes = [f"{_count(tied, 'tied tensor')} counted once"] if tied else []
    idle = [name for name in entries if _idle(data, name)]
    if idle:
        for name in idle:
            del entries[name]
        notes.append(
            f"{_count(len(idle), 'tensor')} left out: transformers also gives weights to experts "
            "without computation, which it never reads"
        )
    label = f"built by {version} on the meta device"
    return Source("transformers", label, entries, notes=tuple(notes))


def _released(data: Mapping[str, Any], name: str) -> str:
    for pattern, replacement in _RELEASED.get(str(data.get("model_type")), ()):
        name = re.sub(pattern, replacement, name)
    return name


def _idle(data: Mapping[str, Any], name: str) -> bool:
    computing = data.get(_IDLE_EXPERTS.get(str(data.get("model_type")), ""))
    found = re.search(r"\.experts\.([0-9]{1,9})\.", name)
    return isinstance(computing, int) and found is not None and int(found[1]) >= computing


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("s" if number != 1 else "")


def _not_built(path: str, version: str, problem: Exception) -> str:
    said = " ".join(str(problem).split())[:200]
    return f"{path}: {version} builds no model from it ({type(problem).__name__}: {said})"


def _class_for(data: Mapping[str, Any], path: str, version: str) -> tuple[Any, Any]:
    """The model class of transformers for a config, and the config as it reads it."""
    import transformers
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    word = data.get("model_type")
    word = _SAME.get(str(word), word)
    if not isinstance(word, str) or word in _FOREIGN or word not in CONFIG_MAPPING:
        raise UserError(
            f"{path}: no *.safetensors file and no {INDEX} lies beside it, and {version} has no "
            f"class for model_type {data.get('model_type')!r} (code that comes with a model is "
            "never executed)"
        )
    try:
        with _quiet():
            config = transformers.AutoConfig.for_model(**{**_shape_keys(data), "model_type": word})
    except Exception as problem:  # its checks of keys raise many kinds
        raise UserError(_not_built(path, version, problem)) from None
    for name in data.get("architectures") or ():
        named: Any = getattr(transformers, name, None) if isinstance(name, str) else None
        is_model = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
        if is_model and named.config_class in (None, type(config)):
            return named, config
    for table in (
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        auto.MODEL_MAPPING,
    ):
        if type(config) in table:
            return table[type(config)], config
    raise UserError(f"{path}: {version} has no model class for model_type {word!r}")


def _shape_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that say what the model is, nested ones too."""
    return {
        key: _shape_keys(value) if isinstance(value, dict) else value
        for key, value in data.items()
        if key not in _LOADING and not key.startswith("_")
    }


def _tensors(model: Any) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Parameters, buffers that are saved, and how many further names are tied to one of them."""
    trained: dict[str, Any] = {}
    buffers: dict[str, Any] = {}
    seen: set[int] = set()
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if id(value) not in seen:
            seen.add(id(value))
            (trained if value.requires_grad else buffers)[name] = value
    return trained, buffers, len(state) - len(trained) - len(buffers)


def _hub_names(model: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The names under which transformers saves tensors, which are those of released files."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # an older version keeps one set of names
        return values
    model._weight_conversions = get_model_conversion_mapping(model)
    named: dict[str, Any] = revert_weight_conversion(model, values)
    return named


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither warnings nor log lines of transformers: what matters is raised."""
    from transformers.utils import logging as theirs

    level = theirs.get_verbosity()
    theirs.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(level)
