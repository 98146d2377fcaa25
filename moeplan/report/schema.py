"""The published schema of an estimate's JSON document: what a reader of it may rely on.

Keys may be added within a major version; none is removed or changes its meaning or unit.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from moeplan.report.schema_time import ExchangeTime, Number, Section, Time

__all__ = ["EstimateDocument", "json_schema"]


class ModelSection(Section):
    """What the model is."""

    name: str
    title: str
    family: str
    """The config's model_type."""
    source: str
    """File, or the preset's source and date."""
    layers: int
    """Layers, MTP modules left out."""
    moe_layers: int
    hidden_size: int
    vocabulary: int
    tied_embeddings: bool
    max_context: int | None
    not_counted: list[str]
    """Parts of the file that no figure includes, such as a vision tower."""
    unread_keys: list[str]
    """Keys that were not read and are not known to be irrelevant."""
    experts: int | None = None
    top_k: int | None = None
    expert_width: int | None = None
    shared_width: int | None = None
    router: str | None = None
    n_group: int | None = None
    topk_group: int | None = None


class ActiveByDefinition(Section):
    """Parameters that one token touches, by definition: in expectation, where that varies."""

    all: Number
    """Every tensor touched, the whole input embedding included."""
    without_input_embedding: Number
    """Without the table that is only looked up; a tied table stays, the head multiplies by it."""
    without_embeddings: Number
    """Without input embedding and output head."""


class ActiveParameters(ActiveByDefinition):
    """The same in expectation, and by component."""

    by_component: dict[str, Number]


class ActiveRange(Section):
    """The ends between which zero-computation experts let a token's parameters vary."""

    fewest: ActiveByDefinition
    """None of the chosen experts holds weights."""
    most: ActiveByDefinition
    """All of them do."""


class LayerParameters(Section):
    """One kind of layer."""

    name: str
    role: Literal["model", "mtp", "encoder"]
    layers: int
    total: int
    active: Number
    by_component: dict[str, int]


class Parameters(Section):
    """Counts of trained parameters; each tensor once, MTP modules and buffers apart."""

    total: int
    active: ActiveParameters
    active_range: ActiveRange | None
    """Of models with zero-computation experts; `active` is the expectation."""
    mtp: int
    """Parameters of multi-token-prediction modules, without shared embedding and head."""
    mtp_active: Number
    mtp_active_with_shared: Number
    """The same with the embedding and the output head, which are the model's own."""
    buffers: int
    """Values kept in the checkpoint that no gradient trains (selection biases)."""
    by_component: dict[str, int]
    by_layer: list[LayerParameters]


class FlopsOfMask(Section):
    """The same counts under the other attention mask."""

    forward_per_token: Number
    training_per_token: Number
    forward_per_sequence: Number


class Flops(Section):
    """FLOPs; a multiply-add is 2. Training is three times the forward pass."""

    context: int
    attention: Literal["causal", "full"]
    forward_per_token: Number
    training_per_token: Number
    forward_per_sequence: Number
    by_component: dict[str, Number]
    causal: FlopsOfMask | None = None
    full: FlopsOfMask | None = None
    prefill_per_sequence: Number
    decode_per_token: Number
    decode_by_component: dict[str, Number]
    mtp_forward_per_token: Number | None = None
    training_per_token_with_mtp: Number | None = None


class Cache(Section):
    """Keys, values, latents and recurrent state, in bytes."""

    format: str
    bytes_per_token: Number
    """What one token writes in all layers."""
    bytes_per_token_beyond_windows: Number
    """What a long sequence still grows by, once windows are full."""
    fixed_bytes: Number
    """State of a sequence whatever its length."""
    batch: int
    context: int
    bytes_per_sequence: Number
    bytes: Number
    """For `batch` sequences of `context` tokens."""


class LayerActivations(Section):
    """Kept activations of one layer, in bytes."""

    name: str
    layers: int
    by_row: dict[str, Number]
    none: Number
    """No recomputation."""
    selective: Number
    full: Number
    """Full recomputation: the layer's input."""


class TrainingMemory(Section):
    """Training state of all parameters, undivided, in bytes."""

    optimizer: str
    bytes_per_parameter: Number
    weights: Number
    gradients: Number
    main_parameters: Number
    moments: Number
    total: Number
    microbatch: int
    activations_per_layer: list[LayerActivations]


class ServingMemory(Section):
    """Weights and cache against a GPU's capacity, in bytes."""

    weights: Number
    kv_cache: Number
    total: Number
    gpu: str
    gpu_memory: Number
    gpus_at_least: int


class Memory(Section):
    """Memory in bytes."""

    weights: Number
    """As stored, buffers included, MTP modules apart."""
    weights_mtp: Number
    weights_format: str
    weights_by_component: dict[str, Number]
    training: TrainingMemory
    serving: ServingMemory


class TrafficOfDirection(Section):
    """Bytes that one GPU sends."""

    local: Number
    """To itself: not sent."""
    same_node: Number
    other_nodes: Number
    """Over the network."""
    forwarded: Number
    """Passed on inside a node for rows that came by network."""
    sent: Number
    busiest: Number
    """Upper bound for the fullest GPU, for the imbalance given."""


class Exchange(Section):
    """Dispatch and combine."""

    dispatch: TrafficOfDirection
    combine: TrafficOfDirection


class AllToAllSection(Section):
    """Expert-parallel exchange; null for a dense model."""

    tokens: int
    ep: int
    node: int
    policy: str
    dispatch_format: str
    combine_format: str
    imbalance: Number
    expected_gpus: Number
    expected_nodes: Number
    per_layer: Exchange
    forward_step: Exchange
    training_step: Exchange
    time: ExchangeTime | None
    """Null where a link that is needed has no bandwidth on file."""


class Dollars(Section):
    """Dollars per million tokens at the floor, and at the expected time."""

    lower: Number
    sequential: Number
    upper: Number
    expected: Number | None
    """Null where no calibration knows the GPU."""


class Cost(Section):
    """Cost at the floor; null where no price of the GPU is known."""

    gpu: str
    price_kind: str
    dollars_per_gpu_hour: Number
    prefill_dollars_per_million_tokens: Dollars
    decode_dollars_per_million_tokens: Dollars
    training_dollars_per_million_tokens: Dollars


class StepCost(Section):
    """FLOPs, bytes and floor in seconds of a step of the batch, or of one token of it."""

    flops: Number
    bytes: Number
    lower: Number
    sequential: Number
    upper: Number


class Speedup(Section):
    """Tokens per second over those without speculation, by floor."""

    lower: Number
    sequential: Number
    upper: Number


class Speculation(Section):
    """Decoding with drafts of the MTP modules; null where none was asked for or none can draft."""

    draft: int
    """Tokens drafted a step."""
    acceptance: Number
    modules: int
    parameters: int
    """Of the modules, without shared embedding and head."""
    tokens_per_step: Number
    """Expected tokens that a sequence gains a step."""
    verification: StepCost
    """The model over 1 + draft new tokens a sequence."""
    drafting: StepCost
    """All passes of the modules in a step."""
    step: StepCost
    per_token: StepCost
    """A step over the tokens that the batch gains."""
    per_token_without: StepCost
    """Plain decoding."""
    speedup: Speedup


class Assumption(Section):
    """A value that neither the file nor the user gave."""

    symbol: str
    value: Number | None
    unit: str
    why: str


class EstimateDocument(Section):
    """The result of `moeplan estimate --json`."""

    schema_version: str = Field(pattern=r"^\d+\.\d+$")
    moeplan_version: str
    model: ModelSection
    params: Parameters
    flops: Flops
    kv_cache: Cache
    memory: Memory
    all_to_all: AllToAllSection | None
    time: Time
    cost: Cost | None
    speculation: Speculation | None
    assumptions: list[Assumption]


def json_schema() -> dict[str, Any]:
    """The JSON schema, titled and versioned."""
    from moeplan.estimation.estimate import SCHEMA_VERSION

    schema = EstimateDocument.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "moeplan estimate",
        "version": SCHEMA_VERSION,
        **{key: value for key, value in schema.items() if key != "title"},
    }
