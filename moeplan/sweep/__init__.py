"""Sweeps: the estimate over many values of any input, as arrays, in chunks.

    from moeplan.sweep import Sweep
    sweep = Sweep.of("mixtral", vary=["g=1,2,4"], metrics=["params.total"],
                     sets=["experts=8*g", "width=14336/g", "top_k=2*g"])
    for table in sweep.tables(): ...      # columns of at most CHUNK rows

`axes` reads values and formulas, `inputs` says what can be varied, `points` evaluates, `write`
keeps CSV, JSON and Parquet.
"""

from __future__ import annotations

from moeplan.sweep.run import CHUNK, Sweep

__all__ = ["CHUNK", "Sweep"]
