"""Sweeps: one answer at every combination of some inputs, as columns.

A room of its own, above `estimation` and `parallel`: a sweep varies any input of either (the
model's config, hardware, layouts, workload), where `plan` searches layouts of one model.
(The function is `moeplan.sweep`, so the room cannot have that name.)
"""

from __future__ import annotations

from moeplan.sweeping.ask import MOST_POINTS, Ask, ask
from moeplan.sweeping.columns import Sweep, cells
from moeplan.sweeping.glance import Glance
from moeplan.sweeping.run import ready, run, stretches

__all__ = ["MOST_POINTS", "Ask", "Glance", "Sweep", "ask", "cells", "ready", "run", "stretches"]
