"""Folds over a model's rows: parameters, FLOPs, memory, traffic, floor time and cost.

Named so that `moeplan.estimate(...)` is free to be the library's main call.
"""
