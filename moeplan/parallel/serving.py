"""Serving on layouts: batch that fits, TTFT, TPOT, throughput and money, for one layout or arrays.

An instance is tp·dp·pp GPUs, in which attention is divided by tp and copied dp times, and experts
lie over ep·etp of the same GPUs. Stages of a pipeline work on different microbatches, so a token
takes pp times the slowest stage. Prefill and decoding share GPUs by turns, or have their own
(`disaggregated`); either way a request costs GPU-seconds of both, which add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from moeplan.arrays import is_array, np
from moeplan.calc import add, calc, value
from moeplan.cluster.hardware import Cluster
from moeplan.cluster.layout import NUMBERS, Layout
from moeplan.cluster.network import strides
from moeplan.cluster.rules import Rule, check, legal, rules
from moeplan.errors import UserError
from moeplan.model.spec import ModelSpec
from moeplan.parallel.batches import Step, blocks, largest_in_time, least_carrying
from moeplan.parallel.divide import widths
from moeplan.parallel.inference import Inference
from moeplan.parallel.jobs import ServingJob
from moeplan.parallel.money import hourly
from moeplan.parallel.optime import RowTimes
from moeplan.parallel.ranksums import largest
from moeplan.quantity import Number, Quantity, plain

__all__ = ["SERVING_BINDS", "ServingPlan", "evaluate_serving", "explain_serving"]

SERVING_BINDS = ("memory", "compute", "all-to-all", "tensor parallel", "TPOT limit", "batch")
_IGNORED = {"vpp": 1, "cp": 1, "zero": 0, "microbatch": 1}
_CHUNK_TOKENS = 8192  # tokens that a prefill computes at a time, for the size of its buffers
_WIDE = 65536  # layouts at a time


def evaluate_serving(
    spec: ModelSpec, layout: Layout, cluster: Cluster, job: ServingJob, gpus: Any = None
) -> dict[str, Any]:
    """What serving costs on an instance of each layout; see `moeplan.parallel`.

    gpus: GPUs that an instance must fill (None: the cluster's). Raises `UserError` for one layout
    that breaks a rule; where nothing fits, `fits` is False and the numbers are nan.
    """
    return ServingPlan(spec, cluster, job).evaluate(layout, gpus)


def explain_serving(
    spec: ModelSpec, layout: Layout, cluster: Cluster, job: ServingJob, gpus: Any = None
) -> dict[str, Any]:
    """The same keys for one layout, as explained quantities."""
    return ServingPlan(spec, cluster, job).explain(layout, gpus)


class ServingPlan:
    """A model, a cluster and a job: what all layouts share, prepared once."""

    def __init__(
        self, spec: ModelSpec, cluster: Cluster, job: ServingJob, times: RowTimes | None = None
    ) -> None:
        self.inference = Inference(spec, cluster, job, times)
        self.spec, self.cluster, self.job = self.inference.spec, cluster, job
        self.pieces = self.inference.pieces
        self.net = self.inference.net
        if "mtp" not in self.pieces.roles and np.any(plain(job.draft)):
            raise UserError(
                f"draft={job.draft}: {spec.name} has no MTP module to guess tokens with"
            )
        if next(self.spec.cache(), None) is None:
            raise UserError(
                f"{spec.name} keeps no keys, values or state: it reads texts and generates none, "
                "so there is no decoding to serve"
            )
        self.widths = widths(self.pieces.all)
        reported = cluster.gpu.memory_reported
        self.capacity = cluster.gpu.memory_bytes if reported is None else reported

    # ------------------------------------------------------------------------------ legality
    def facts(self, gpus: Any = None) -> dict[str, Number]:
        """What rules know besides the layout."""
        out = {
            "gpus": plain(self.cluster.gpus.value if gpus is None else gpus),
            "L": self.pieces.layers,
            "S": 1,
        }
        if self.spec.moe is not None:
            out |= {"E": self.spec.moe.values["E"], "F": self.spec.moe.values["F"]}
        return out

    def rules(self, layout: Layout) -> list[Rule]:
        """Rules of an instance: those of training that are not about sequences and batches."""
        found = rules(layout, self.widths, experts=self.spec.moe is not None)
        return [r for r in found if r.name not in ("sequence", "accumulation")]

    @staticmethod
    def _plain(layout: Layout) -> Layout:
        """Without what serving does not have: context parallelism, interleaving, ZeRO."""
        for name, least in _IGNORED.items():
            if name not in ("zero", "microbatch") and np.any(plain(getattr(layout, name)) != least):
                raise UserError(f"layout {layout}: {name} is for training, serving takes {least}")
        return replace(layout.at(_IGNORED), schedule="1f1b", sp=False)

    # -------------------------------------------------------------------------------- answers
    def evaluate(self, layout: Layout, gpus: Any = None) -> dict[str, Any]:
        """Numbers for numbers, arrays for arrays."""
        layout = self._plain(layout)
        facts = self.facts(gpus)
        if not (layout.is_many or is_array(facts["gpus"])):
            check(layout, self.rules(layout), **facts)
            return self._answer(layout, dict(layout.values), explained=False)
        found = [np.asarray(plain(getattr(layout, name)), np.float64) for name in NUMBERS]
        spread = np.broadcast_arrays(*found, np.asarray(facts["gpus"], np.float64))
        shape = spread[0].shape
        flat = {n: a.ravel() for n, a in zip((*NUMBERS, "gpus"), spread, strict=True)}
        facts["gpus"] = flat.pop("gpus")
        many = layout.at(flat)
        good = np.broadcast_to(legal(many, self.rules(many), **facts), flat["tp"].shape)
        out: dict[str, Any] = {"legal": good, "fits": np.zeros(good.shape, dtype=bool)}
        for start in range(0, good.size, _WIDE):
            at = np.flatnonzero(good[start : start + _WIDE]) + start
            if not at.size:
                continue
            here = layout.at({name: a[at] for name, a in flat.items()})
            for name, numbers in self._answer(here, dict(here.values), explained=False).items():
                if name == "legal":
                    continue
                if name not in out:
                    out[name] = np.full(good.shape, -1 if name == "binds" else np.nan)
                out[name][at] = numbers
        if "binds" in out:
            out["binds"] = out["binds"].astype(np.int64)
        return {name: a.reshape(shape) for name, a in out.items()}

    def explain(self, layout: Layout, gpus: Any = None) -> dict[str, Any]:
        """Quantities, for one layout."""
        layout = self._plain(layout)
        check(layout, self.rules(layout), **self.facts(gpus))
        bare = self._answer(layout, dict(layout.values), explained=False)
        v: dict[str, Any] = {name: getattr(layout.explained, name) for name in NUMBERS}
        v["world"] = calc("tp*dp*pp", "GPUs", tp=v["tp"], dp=v["dp"], pp=v["pp"])
        v["expert"] = calc("ep*etp", "GPUs", ep=v["ep"], etp=v["etp"])
        return self._answer(layout, v, explained=True, batch=bare["batch"] if bare["fits"] else 1)

    # ------------------------------------------------------------------------------- stages
    def _stages(self, v: dict[str, Any]) -> list[list[Any]]:
        """How often stages hold each piece: the first, those in the middle, the last.

        Layers are spread evenly; a middle stage has the most, in the model's mean proportions.
        """
        pp, layers = value(v["pp"]), self.pieces.layers
        names = self.pieces.roles
        shares = [self.pieces.order.count(i) / layers for i in range(len(names))]
        ends = -(-layers // pp) if not is_array(pp) else np.ceil(layers / pp)
        out = []
        for place in ("first", "middle", "last"):
            row: list[Any] = []
            for role, share in zip(names, shares, strict=True):
                if role == "layer":
                    row.append(ends * share)
                elif role == "first":
                    row.append(1 if place == "first" else None)
                elif role == "last":
                    row.append(1 if place == "last" else None)
                else:
                    row.append(None)
            out.append(row)
        return out

    def _over(self, rows: Sequence[Any], each: Sequence[Any], unit: str) -> Any:
        parts = {
            p.name: calc("times*each", unit, times=n, each=x)
            for p, n, x in zip(self.pieces.all, rows, each, strict=True)
            if n is not None
        }
        return add(parts, unit)

    def _slowest(self, v: dict[str, Any], each: Sequence[Any], unit: str) -> Any:
        """The largest stage's sum; all of the model where there is one stage."""
        stages = [self._over(rows, each, unit) for rows in self._stages(v)]
        whole = self._over(self._all(), each, unit)
        return calc("pick(pp > 1, most, whole)", unit, pp=v["pp"], most=largest(stages, unit),
                    whole=whole)  # fmt: skip

    def _all(self) -> list[Any]:
        return [
            self.pieces.order.count(i)
            if role == "layer"
            else 1
            if role in ("first", "last")
            else None
            for i, role in enumerate(self.pieces.roles)
        ]

    # -------------------------------------------------------------------------------- memory
    def _memory(self, v: dict[str, Any], out: dict[str, Any], own: Any) -> None:
        job, inference = self.job, self.inference
        divided = inference.divided(v, "decode", 1, 1, 1)
        tokens = calc("input + output", "tokens", input=own(job.input), output=own(job.output))
        weights = [inference.weight_bytes(divided, p) for p in self.pieces.all]
        cache = [inference.cache_bytes(divided, p, tokens) for p in self.pieces.all]
        out["memory_weights"] = self._slowest(v, weights, "B")
        if "mtp" in self.pieces.roles:
            extra = weights[self.pieces.roles.index("mtp")]
            out["memory_weights"] = calc("model + mtp", "B", model=out["memory_weights"], mtp=extra)
        out["memory_cache_per_sequence"] = self._slowest(v, cache, "B")
        buffers: Any = 0
        moe = self.spec.moe
        if moe is not None:
            symbols = moe.symbols if isinstance(v["tp"], Quantity) else moe.values
            buffers = calc("8*T*each*D/tp", "B", T=_CHUNK_TOKENS, each=symbols[moe.each],
                           D=symbols[moe.width], tp=v["tp"])  # fmt: skip
        free = job.overheads
        out["memory_overhead"] = calc(
            "framework + buffers + share*weights", "B", framework=own(free.framework),
            buffers=buffers, share=own(free.fragmentation), weights=out["memory_weights"],
        )  # fmt: skip
        room = calc("capacity - weights - overhead", "B", capacity=own(self.capacity),
                    weights=out["memory_weights"], overhead=out["memory_overhead"])  # fmt: skip
        out["max_batch"] = calc(
            "dp*max(0, room//((1 + share)*sequence))", "sequences", dp=v["dp"], room=room,
            share=own(free.fragmentation), sequence=out["memory_cache_per_sequence"],
        )  # fmt: skip

    # --------------------------------------------------------------------------------- times
    def _decode(self, v: dict[str, Any], batch: Any, own: Any) -> dict[str, Any]:
        """Seconds per output token of `batch` sequences on the instance, and its parts."""
        job = self.job
        draft = own(job.draft)
        context = calc("input + output/2", "tokens", input=own(job.input), output=own(job.output))
        each = calc("batch/(dp*pp)", "sequences", batch=batch, dp=v["dp"], pp=v["pp"])
        step = calc("1 + draft", "tokens", draft=draft)
        figures = self._pass(v, "decode", each, step, context, job.decode_policy)
        accepted = calc("1 + 0*draft", "", draft=draft)
        guess: dict[str, Any] = dict.fromkeys(figures, 0)
        if "mtp" in self.pieces.roles:
            accepted = calc("(1 - a**(1 + draft))/(1 - a)", "tokens", a=own(job.acceptance),
                            draft=draft)  # fmt: skip
            one = self._pieces_pass(v, "decode", each, 1, context, job.decode_policy)
            at = self.pieces.roles.index("mtp")
            guess = {
                name: calc("draft*one", "s", draft=draft, one=one[at][name]) for name in figures
            }
        sends = self._sends(v, each)
        out = {
            name: calc("(pp*stage + guess + sends)/accepted", "s", pp=v["pp"], stage=figures[name],
                       guess=guess[name], sends=sends, accepted=accepted)
            for name in ("lower", "time", "upper")
        }  # fmt: skip
        parts = {name: figures[name] for name in ("compute", "exchange", "tensor")}
        return {**out, **parts, "accepted": accepted}

    def _sends(self, v: dict[str, Any], sequences: Any) -> Any:
        at = strides("tp-cp-ep-dp-pp", {**{n: value(x) for n, x in v.items()}, "cp": 1})
        hidden = self.spec.hidden if isinstance(v["tp"], Quantity) else self.spec.hidden.value
        size = calc("2*T*D", "B", T=sequences, D=hidden)
        each = self.net.seconds("send", size, v["pp"], self.net.inside(v["pp"], at["pp"]))
        return calc("(pp - 1)*each", "s", pp=v["pp"], each=each)

    def _pieces_pass(self, v: Any, phase: str, B: Any, S: Any, C: Any, policy: str) -> Any:
        divided = self.inference.divided(v, phase, B, S, C)
        return [
            self.inference.piece_time(divided, p, policy, decode=phase == "decode")
            for p in self.pieces.all
        ]

    def _pass(self, v: Any, phase: str, B: Any, S: Any, C: Any, policy: str) -> dict[str, Any]:
        """Seconds of the slowest stage, by bound and part."""
        found = self._pieces_pass(v, phase, B, S, C, policy)
        return {name: self._slowest(v, [f[name] for f in found], "s") for name in found[0]}

    def _prefill(self, v: dict[str, Any], out: dict[str, Any], own: Any) -> None:
        job = self.job
        new = calc("input*(1 - cached)", "tokens", input=own(job.input), cached=own(job.cached))
        B = own(job.prefill_batch)
        figures = self._pass(v, "prefill", B, new, own(job.input), job.prefill_policy)
        stage = figures["time"]
        sends = self._sends(v, calc("B*S", "tokens", B=B, S=new))
        out["prefill_seconds"] = calc("pp*stage + sends", "s", pp=v["pp"], stage=stage, sends=sends)
        out["ttft"] = calc("queueing*prefill", "s", queueing=own(job.queueing),
                           prefill=out["prefill_seconds"])  # fmt: skip
        for bound in ("lower", "upper"):
            out[f"ttft_{bound}"] = calc(
                "queueing*(pp*stage + sends)", "s", queueing=own(job.queueing), pp=v["pp"],
                stage=figures[bound], sends=sends,
            )  # fmt: skip
        out["_prefill_cost"] = calc(
            "tp*pp*stage/B", "GPU s", tp=v["tp"], pp=v["pp"], stage=stage, B=B
        )
        out["prefill_tokens_per_second_per_gpu"] = calc(
            "new/cost", "tokens/s", new=new, cost=out["_prefill_cost"]
        )

    # -------------------------------------------------------------------------------- answer
    def _answer(
        self, layout: Layout, v: dict[str, Any], *, explained: bool, batch: Any = None
    ) -> dict[str, Any]:
        def own(q: Any) -> Any:
            if explained:
                return q if isinstance(q, Quantity) else Quantity.given(q)
            return plain(q)

        out: dict[str, Any] = {"legal": True, "gpus": v["world"]}
        self._memory(v, out, own)
        self._holds(out["max_batch"])
        self._prefill(v, out, own)
        if batch is None:
            batch = self._batch(v, out)
        out["batch"] = own(batch)
        step = self._decode(v, out["batch"], own)
        cost = calc("gpus*step*output/batch", "GPU s", gpus=v["world"], step=step["time"],
                    output=own(self.job.output), batch=out["batch"])  # fmt: skip
        both = calc("prefill + decode", "GPU s", prefill=out["_prefill_cost"], decode=cost)
        out["prefill_share"] = calc("prefill/both", "", prefill=out.pop("_prefill_cost"), both=both)
        for name, bound in (("tpot_lower", "lower"), ("tpot", "time"), ("tpot_upper", "upper")):
            out[name] = step[bound]
            if not self.job.disaggregated:  # prefill takes turns with decoding
                out[name] = calc("step/(1 - share)", "s", step=step[bound],
                                 share=out["prefill_share"])  # fmt: skip
        out["decode_tokens_per_second_per_gpu"] = calc(
            "batch/(step*gpus)", "tokens/s", batch=out["batch"], step=step["time"], gpus=v["world"]
        )
        self._rates(out, both, own)
        least = 1 if self.job.batch is None or explained else plain(self.job.batch)
        fits = value(out["max_batch"]) >= np.maximum(1, least)
        fits = fits if is_array(fits) else bool(fits)
        out["fits"] = fits
        out["binds"] = self._binds(out, step)
        always = ("legal", "fits", "gpus", "max_batch", "binds")
        for name in out:
            if not (name in always or name.startswith("memory") or explained):
                out[name] = calc("pick(fits, x, nothing)", fits=fits, x=out[name],
                                 nothing=float("nan"))  # fmt: skip
        return out

    def _holds(self, most: Any) -> None:
        """Refuse a batch that one layout cannot hold; of many, those do not fit."""
        wanted, most = plain(self.job.batch), value(most)
        if wanted is None or is_array(wanted) or is_array(most) or not 1 <= most < wanted:
            return
        tokens = plain(self.job.input) + plain(self.job.output)
        raise UserError(
            f"batch is {wanted:,}, and an instance holds at most {most:,.0f} sequences of "
            f"{tokens:,} tokens"
        )

    def _rates(self, out: dict[str, Any], both: Any, own: Any) -> None:
        job = self.job
        rate = calc("1/both", "requests/s", both=both)
        out["requests_per_second_per_gpu"] = rate
        out["requests_per_second"] = calc("rate*gpus", "requests/s", rate=rate, gpus=out["gpus"])
        for name, tokens in (("input", job.input), ("output", job.output)):
            out[f"{name}_tokens_per_second_per_gpu"] = calc(
                "rate*tokens", "tokens/s", rate=rate, tokens=own(tokens)
            )
        each = own(self.price())
        dollars = {
            "input": "price/3600*share*both/tokens*1000000",
            "output": "price/3600*(1 - share)*both/tokens*1000000",
        }
        for name, formula in dollars.items():
            out[f"dollars_per_million_{name}"] = calc(
                formula, "$", price=each, share=out["prefill_share"], both=both,
                tokens=own(getattr(job, name)),
            )  # fmt: skip

    def price(self) -> Any:
        """Dollars per GPU-hour; nan where none is known."""
        return hourly(self.job.price, self.cluster.gpu.id)

    def _batch(self, v: dict[str, Any], out: dict[str, Any]) -> Any:
        """The batch: the job's, or the largest that fits and meets the TPOT."""
        most = out["max_batch"]
        if self.job.batch is not None:
            wanted = plain(self.job.batch)
            return calc("max(1, wanted + 0*most)", wanted=wanted, most=most)
        if self.job.tpot is None:
            return calc("max(1, most)", most=most)
        prefill = None if self.job.disaggregated else out["_prefill_cost"]
        return largest_in_time(
            self._stepper(v), most, limit=plain(self.job.tpot), prefill=prefill, gpus=v["world"],
            output=plain(self.job.output),
        )  # fmt: skip

    def _stepper(self, v: dict[str, Any]) -> Step:
        """Seconds of decoding steps with batches, of arrays those of rows `at` (in blocks)."""
        return lambda batch, at: self._decode(
            {name: blocks(x, batch, at) for name, x in v.items()}, batch, plain
        )["time"]

    def step_seconds(self, layout: Layout, batch: Any) -> Any:
        """Seconds per output token of `batch` sequences that are decoded and nothing else."""
        return self._decode(dict(self._plain(layout).values), batch, plain)["time"]

    def batch_under(self, layout: Layout, rate: Any, most: Any) -> Any:
        """Sequences that an instance decodes together under `rate` requests a second: of arrays
        of layouts, the least batch that carries them (Little's law), at most `most`.
        """
        v = dict(self._plain(layout).values)
        cost = {"_prefill_cost": 0.0}
        if not self.job.disaggregated:
            self._prefill(v, cost, plain)
        return least_carrying(
            self._stepper(v), most, rate=rate, prefill=cost["_prefill_cost"], gpus=v["world"],
            output=plain(self.job.output),
        )  # fmt: skip

    def of_job(self, job: ServingJob) -> ServingPlan:
        """The same model and cluster with another job of the same formats."""
        out = copy(self)
        out.job, out.inference = job, copy(self.inference)
        out.inference.job = job
        return out

    def _binds(self, out: dict[str, Any], step: dict[str, Any]) -> Any:
        """What limits throughput: the batch's limit, else the largest part of a decoding step."""
        parts = [value(step[name]) for name in ("compute", "exchange", "tensor")]
        at = 1 + np.argmax(np.stack(np.broadcast_arrays(*parts)), axis=0)
        full = value(out["batch"]) >= value(out["max_batch"])
        found = np.where(full, SERVING_BINDS.index("memory"), at)
        if self.job.batch is not None:
            found = np.where(full, found, SERVING_BINDS.index("batch"))
        elif self.job.tpot is not None:
            found = np.where(full, found, SERVING_BINDS.index("TPOT limit"))
        return found if is_array(value(out["batch"])) else int(found)
