"""Plans: every legal layout, the best of them, and what a chosen one becomes.

`space` says which degrees and kinds are searched, `grid` lists every legal layout of them,
`training` and `serving` evaluate and rank, `front` keeps what no other layout beats, `sensitivity`
searches again under other inputs, `sizing` finds the smallest cluster, and `ask` and `ask_serving`
put these together.

A chosen layout is a `moeplan.plan.chosen.Chosen`: it is saved to and loaded from a plan file, and
`moeplan.plan.export` writes it as launch arguments.
"""
