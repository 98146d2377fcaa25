"""Exports as a shell and an engine's own parser take them."""

import subprocess

from moeplan.cluster.layout import Layout
from moeplan.parallel import ServingJob, TrainingJob
from moeplan.plan.chosen import Chosen

__all__ = ["chosen", "commands", "read", "served"]


def chosen(model, degrees, cluster, **job):
    gpus = int(cluster.rpartition("x")[2])
    training = not {"input", "output", "batch", "disaggregated", "draft", "cache"} & set(job)
    made = TrainingJob(**job) if training else ServingJob(**job)
    return Chosen(model, cluster, Layout.parse(degrees, gpus=gpus), made)


def served(model, degrees, cluster, **job):
    return chosen(model, degrees, cluster, input=4000, **job)


def commands(script):
    """The words of each command as the shell passes them on: programs are replaced by printing."""
    programs = "".join(
        f'{name}() {{ printf "%s\\0" {name} "$@"; printf "\\1"; }}\n'
        for name in ("torchrun", "vllm", "python")
    )
    names = "MORE=(); NODE_RANK=1; MASTER_ADDR=a; MASTER_PORT=1; MODEL=m\n"
    done = subprocess.run(["bash", "-eu"], input=programs + names + script, check=True,
                          capture_output=True, text=True)  # fmt: skip
    return [part.split("\0")[:-1] for part in done.stdout.split("\1")[:-1]]


def read(words):
    """Options with their values, as argparse groups them."""
    out, key = {}, None
    for word in words:
        if word.startswith("--"):
            key = word
            out[key] = []
        elif key is not None:
            out[key].append(word)
    return {key: values[0] if len(values) == 1 else values for key, values in out.items()}
