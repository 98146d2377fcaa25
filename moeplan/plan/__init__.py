"""The best layout of a model on a cluster: every legal one is evaluated, as arrays, and ranked.

`space` says which degrees and kinds are searched, `grid` lists every legal layout of them,
`training` and `serving` evaluate and rank, `front` keeps what no other layout beats, `sensitivity`
searches again under other inputs, and `sizing` finds the smallest cluster.
"""
