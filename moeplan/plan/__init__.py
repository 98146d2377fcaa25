"""Plans: the layouts that are legal, the best of them, and what a chosen one becomes.

A chosen layout is a `moeplan.plan.chosen.Chosen`: it is saved to and loaded from a plan file, and
`moeplan.plan.export` writes it as launch arguments.
"""
