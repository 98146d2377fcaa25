"""State space mixers as rows: Mamba-1 (arXiv 2312.00752) and Mamba-2 (SSD, arXiv 2405.21060).

Both project the input to an inner width, run a short causal convolution, and carry a state h of
fixed size through the sequence; with decay a, input x, and B and C that depend on the token:

    h = a·h + B x,    y = C h

Symbols: Di inner width, N state size, R rank of the time step (Mamba-1), Hm heads of dm dimensions
and G groups that share B and C (Mamba-2), w taps of the convolution, Q tokens of a chunk.

FLOPs are those of the outer product B x and of the product C h; the decay, its discretisation,
gates and skip are element-wise and not counted, as elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.model.ops import Block, CacheEntry, Kept, Op, Shard, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["Mamba1", "Mamba2"]


def _vector(name: str, *dims: str, shard: Shard = "heads") -> Weight:
    return Weight(name, dims, "attention", matmul=False, shard=shard)


def _conv_weights(prefix: str, channels: str, bias: bool) -> tuple[Weight, ...]:
    weight = _vector(f"{prefix}conv1d.weight", channels, "1", "w")
    return (weight, _vector(f"{prefix}conv1d.bias", channels)) if bias else (weight,)


def _conv_row(channels: str, weights: tuple[Weight, ...], decode: bool) -> Op:
    """Depthwise: each channel sees w tokens. Decoding reads and writes the last w - 1."""
    state = f" + B*({channels})*(w - 1)" if decode else ""
    return Op(
        name="conv",
        kind="scan",
        component="attention",
        flops=f"2*T*({channels})*w",
        weights=weights,
        read=f"T*({channels}){state}",
        write=f"T*({channels}){state}",
        kept=(Kept("conv_input", f"T*({channels})"),),
        shard="heads",
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Mamba1(Block):
    """A selective scan: every channel has a state of its own, decays depend on the token.

    The scan has no matmul form: prefill and training run it as decoding does, 4·N FLOPs a token
    and channel, and the fused kernel keeps the states on the chip (they are computed again in the
    backward pass). norms: time step, B and C are normalised (Jamba). State is fp32.
    """

    D: Number
    Di: Number
    N: Number
    R: Number
    w: Number
    conv_bias: bool = True
    bias: bool = False
    norms: bool = False
    prefix: str = "mamba."

    @property
    def label(self) -> str:
        """What the field calls this kind."""
        return "Mamba-1"

    def _matrix(self, name: str, n: str, k: str, shard: Shard) -> Weight:
        return Weight(f"{self.prefix}{name}.weight", (n, k), "attention", shard=shard)

    def _bias(self, name: str, n: str) -> Weight | None:
        return _vector(f"{self.prefix}{name}.bias", n) if self.bias else None

    def _parts(self) -> dict[str, Weight | None]:
        return {
            "in_proj": self._matrix("in_proj", "2*Di", "D", "column"),
            "in_bias": self._bias("in_proj", "2*Di"),
            "x_proj": self._matrix("x_proj", "R + 2*N", "Di", "row"),
            "dt_proj": self._matrix("dt_proj", "Di", "R", "column"),
            "dt_bias": _vector(f"{self.prefix}dt_proj.bias", "Di"),
            "out_proj": self._matrix("out_proj", "D", "Di", "row"),
            "out_bias": self._bias("out_proj", "D"),
        }

    def _state(self) -> tuple[Weight, Weight]:
        return _vector(f"{self.prefix}A_log", "Di", "N"), _vector(f"{self.prefix}D", "Di")

    def _norms(self) -> tuple[Weight, ...]:
        widths = {"dt_layernorm": "R", "b_layernorm": "N", "c_layernorm": "N"}
        return tuple(
            Weight(f"{self.prefix}{name}.weight", (width,), "norms", matmul=False)
            for name, width in widths.items()
            if self.norms
        )

    def weights(self) -> tuple[Weight, ...]:
        """Projections, convolution, decays and skip, norms."""
        return (
            *(w for w in self._parts().values() if w is not None),
            *_conv_weights(self.prefix, "Di", self.conv_bias),
            *self._state(),
            *self._norms(),
        )

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Input projection, convolution, token-dependent parameters, scan, output projection."""
        part = self._parts()
        assert part["in_proj"]
        assert part["x_proj"]
        assert part["dt_proj"]
        assert part["out_proj"]
        decode = work.phase == "decode"
        conv = _conv_weights(self.prefix, "Di", self.conv_bias)
        kept = (Kept("attn_input", "T*D", drop="norm"),)
        rows = [
            linear("in_proj", part["in_proj"], bias=part["in_bias"], kept=kept),
            _conv_row("Di", conv, decode),
            linear("x_proj", part["x_proj"], kept=(Kept("conv_out", "T*Di", drop="activation"),)),
        ]
        if self.norms:
            n = "T*(R + 2*N)"
            ssm = (Kept("ssm_parameters", n),)
            rows.append(pointwise("ssm_norms", "norms", n, n, weights=self._norms(), kept=ssm))
        rows += [
            linear("dt_proj", part["dt_proj"], bias=part["dt_bias"], kept=(Kept("dt", "T*R"),)),
            self._scan(decode),
            linear(
                "out_proj",
                part["out_proj"],
                bias=part["out_bias"],
                kept=(Kept("scan_out", "T*Di"),),
            ),
        ]
        return tuple(rows)

    def _scan(self, decode: bool) -> Op:
        """Reads inputs, time steps, gates, B and C; decoding also its fp32 state, and writes it."""
        state = " + 2*B*Di*N" if decode else ""  # fp32, counted in two-byte elements
        return Op(
            name="selective_scan",
            kind="scan",
            component="attention",
            flops="4*T*Di*N",
            weights=self._state(),
            read=f"T*(3*Di + 2*N){state}",
            write=f"T*Di{state}",
            kept=(
                Kept("scan_x", "T*Di", drop="activation"),
                Kept("scan_dt", "T*Di"),
                Kept("scan_bc", "2*T*N"),
                Kept("gate", "T*Di"),
            ),
            shard="heads",
        )

    def cache(self) -> tuple[CacheEntry, ...]:
        """The state in fp32, and the convolution's last w - 1 inputs."""
        return (
            CacheEntry("state", fixed="Di*N", bits=32),
            CacheEntry("conv_state", fixed="Di*(w - 1)", bits=16),
        )


_CHANNELS = "Hm*dm + 2*G*N"  # of the convolution: inputs, B, C


@dataclass(frozen=True, eq=False, kw_only=True)
class Mamba2(Block):
    """State space duality: one decay a head, so chunks of Q tokens become matmuls.

    Decoding runs the recurrence. chunk: Q of the chunked form, from the config. state_bits: of an
    element of the state.
    """

    D: Number
    Hm: Number
    dm: Number
    N: Number
    G: Number
    w: Number
    chunk: Number
    conv_bias: bool = True
    bias: bool = False
    state_bits: int = 32
    prefix: str = "mamba."

    @property
    def label(self) -> str:
        """What the field calls this kind."""
        return "Mamba-2"

    def locals(self, work: Workload) -> Mapping[str, str]:
        """Q: tokens per chunk, less where the pass is shorter."""
        return {} if work.phase == "decode" else {"Q": "min(chunk, S)"}

    def _projections(self) -> tuple[Weight, Weight | None, Weight, Weight | None]:
        rows = "2*Hm*dm + 2*G*N + Hm"  # gates, inputs, B, C, time steps

        def matrix(name: str, n: str, k: str, shard: Shard) -> Weight:
            return Weight(f"{self.prefix}{name}.weight", (n, k), "attention", shard=shard)

        def offset(name: str, n: str) -> Weight | None:
            return _vector(f"{self.prefix}{name}.bias", n) if self.bias else None

        return (
            matrix("in_proj", rows, "D", "column"),
            offset("in_proj", rows),
            matrix("out_proj", "D", "Hm*dm", "row"),
            offset("out_proj", "D"),
        )

    def _heads(self) -> tuple[Weight, ...]:
        return tuple(_vector(self.prefix + name, "Hm") for name in ("dt_bias", "A_log", "D"))

    def _norm(self) -> Weight:
        return Weight(f"{self.prefix}norm.weight", ("Hm*dm",), "norms", matmul=False)

    def weights(self) -> tuple[Weight, ...]:
        """Projections, convolution, a time-step bias, decay and skip per head, gated norm."""
        return (
            *(w for w in self._projections() if w is not None),
            *_conv_weights(self.prefix, _CHANNELS, self.conv_bias),
            *self._heads(),
            self._norm(),
        )

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Projection, convolution, state space in the form of the phase, gated norm, output."""
        ins, in_bias, out, out_bias = self._projections()
        decode = work.phase == "decode"
        conv = _conv_weights(self.prefix, _CHANNELS, self.conv_bias)
        return (
            linear("in_proj", ins, bias=in_bias, kept=(Kept("attn_input", "T*D", drop="norm"),)),
            _conv_row(_CHANNELS, conv, decode),
            self._recurrent() if decode else self._chunked(),
            pointwise(
                "gated_norm",
                "norms",
                "2*T*Hm*dm",
                "T*Hm*dm",
                weights=(self._norm(),),
                kept=(Kept("ssm_out", "T*Hm*dm"), Kept("gate", "T*Hm*dm")),
                shard="heads",
            ),
            linear("out_proj", out, bias=out_bias, kept=(Kept("gated", "T*Hm*dm", drop="norm"),)),
        )

    def _recurrent(self) -> Op:
        """B x and C h are 2·N·dm FLOPs each per head; the state is read and written once."""
        state = "per(B*Hm*dm*N*state_bits, 16)"  # counted in two-byte elements
        return Op(
            name="ssd",
            kind="scan",
            component="attention",
            flops="4*T*Hm*dm*N",
            weights=self._heads(),
            read=f"T*({_CHANNELS} + Hm) + {state}",
            write=f"T*Hm*dm + {state}",
            shard="heads",
        )

    def _chunked(self) -> Op:
        """FLOPs per chunk of Q tokens, whole Q x Q tiles as kernels compute them.

        C Bᵀ per group: 2·Q²·N. The masked product with the inputs per head: 2·Q²·dm. Each head's
        new state from B and inputs, and what C reads from the old one: 2·Q·N·dm each. Together,
        per token: 2·Q·(G·N + Hm·dm) + 4·Hm·N·dm. Passing states on from chunk to chunk is
        element-wise. A ragged last chunk is taken in proportion. Kernels write each chunk's state
        in fp32 and read it back.
        """
        states = "per(2*T*Hm*dm*N, Q)"  # fp32, counted in two-byte elements
        return Op(
            name="ssd",
            kind="scan",
            component="attention",
            flops="T*(2*Q*(G*N + Hm*dm) + 4*Hm*dm*N)",
            weights=self._heads(),
            read=f"T*({_CHANNELS} + Hm) + {states}",
            write=f"T*Hm*dm + {states}",
            kept=(
                Kept("ssm_inputs", f"T*({_CHANNELS})", drop="activation"),
                Kept("dt", "T*Hm", bits=32),
                Kept("chunk_states", "per(T*Hm*dm*N, Q)", bits=32),
            ),
            shard="heads",
        )

    def cache(self) -> tuple[CacheEntry, ...]:
        """The state of every head, and the convolution's last w - 1 inputs."""
        return (
            CacheEntry("state", fixed="Hm*dm*N", bits=self.state_bits),
            CacheEntry("conv_state", fixed=f"({_CHANNELS})*(w - 1)", bits=16),
        )
