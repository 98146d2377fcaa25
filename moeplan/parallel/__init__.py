"""A model laid out on a cluster: memory, traffic, time and money of layouts, one or a million.

Two functions answer everything (both are in this package's modules and re-exported here):

    evaluate_training(spec, layout, cluster, job, gpus=None) -> dict[str, Number]
    evaluate_serving(spec, layout, cluster, job, gpus=None) -> dict[str, Number]

`layout` is a `moeplan.cluster.layout.Layout`. Its numeric fields (tp, pp, vpp, dp, cp, ep, etp,
zero, microbatch, batch) are numbers or float64 arrays of one shape (or broadcastable); its other
fields (sp, schedule, recompute, selective, overlap, split, order) are kinds: loop over them in
Python. `cluster` is a `moeplan.cluster.hardware.Cluster`, `job` a `TrainingJob` or `ServingJob`.

Arrays in, arrays out: every entry of the result is a float64 (or bool, or int) array of the
broadcast shape, and a point that is not legal has `legal` False and nan in every number. Numbers
in, plain numbers out, and a layout that is not legal raises one `UserError` that lists every
violated rule. `explain_training` and `explain_serving` run the same formulas and return the same
keys as `Quantity` trees, with the details (by stage, by message, by row) that arrays leave out.

Keys of `evaluate_training`
  legal, fits             bool: legal layout; legal and within the GPU's memory
  gpus                    GPUs of the layout, tp·cp·pp·dp
  memory                  bytes on the most loaded GPU, with fragmentation and framework
  memory_weights, memory_gradients, memory_optimizer, memory_activations, memory_buffers,
  memory_framework, memory_fragmentation
                          its parts, on that GPU; they sum to `memory`
  memory_free             capacity minus `memory` (negative where it does not fit)
  stage                   pipeline rank of the most loaded GPU
  step_lower, step, step_upper
                          seconds a training step: everything overlaps and ops are at the fast end
                          of their calibration's band; the layout's overlap assumption and expected
                          ops; nothing overlaps and ops are at the slow end
  time_compute, time_recompute, time_tp, time_ep, time_cp, time_pp, time_dp, time_bubble,
  time_optimizer          parts of `step` (exposed parts where communication overlaps)
  dp_seconds              data-parallel messages, those under compute too
  step_flops, step_flops_full
                          model FLOPs of a step on the whole cluster, causal and every pair
  mfu, mfu_full           of the bf16 peak
  tokens_per_second, tokens_per_second_per_gpu
  seconds, gpu_hours      for the job's tokens, where it names them, else nan
  dollars, energy         the same ($; J, all-in power), nan where price or power is not known
  sent_scale_up, sent_scale_out
                          bytes that the busiest rank sends in a step, per link tier
  binds                   index into BINDS: what takes most of the step, or memory if not `fits`;
                          data-parallel messages that compute does not cover count in whole

Keys of `evaluate_serving`
  legal, fits, gpus       of one instance; fits: the weights and the job's batch, or one sequence
                          where it names none; one layout that holds fewer than its batch is a
                          `UserError`
  memory_weights, memory_cache_per_sequence, memory_overhead
  max_batch               sequences an instance's decoding can hold
  batch                   the batch that is used: the job's, or the largest that fits and meets
                          the job's TPOT
  prefill_seconds         of one request's uncached input
  ttft_lower, ttft, ttft_upper
                          the same with the job's queueing factor
  tpot_lower, tpot, tpot_upper
                          seconds per output token and sequence; bounds as above
  decode_tokens_per_second_per_gpu, prefill_tokens_per_second_per_gpu
  requests_per_second     of one instance at `batch`: prefill and decoding share it, or for a
                          disaggregated job of a balanced pair, per GPU as below
  requests_per_second_per_gpu, output_tokens_per_second_per_gpu, input_tokens_per_second_per_gpu
  prefill_share           part of the GPUs (or of the time) that prefill needs
  dollars_per_million_input, dollars_per_million_output
  binds                   index into SERVING_BINDS

A `TrainingPlan` or `ServingPlan` keeps what calls share (tables of pieces): make one where many
arrays are evaluated. `TrainingPlan.by_rank` and `TrainingPlan.traffic` list one layout's memory by
pipeline rank and its messages. `disaggregate` joins two serving results, one layout for prefill and
one for decoding. Layouts are evaluated in pieces of `moeplan.parallel.lookup.CHUNK`; memory grows
with the results only (about 35 numbers a layout).
"""

from __future__ import annotations

from moeplan.parallel.jobs import Overheads, ServingJob, TrainingJob
from moeplan.parallel.limits import (
    decode_speed_limit,
    disaggregate,
    model_speed_limit,
    paper_speed_limit,
)
from moeplan.parallel.serving import (
    SERVING_BINDS,
    ServingPlan,
    evaluate_serving,
    explain_serving,
)
from moeplan.parallel.training import BINDS, TrainingPlan, evaluate_training, explain_training

__all__ = [
    "BINDS",
    "SERVING_BINDS",
    "Overheads",
    "ServingJob",
    "ServingPlan",
    "TrainingJob",
    "TrainingPlan",
    "decode_speed_limit",
    "disaggregate",
    "evaluate_serving",
    "evaluate_training",
    "explain_serving",
    "explain_training",
    "model_speed_limit",
    "paper_speed_limit",
]
