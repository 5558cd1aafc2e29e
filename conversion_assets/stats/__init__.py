"""Statistical primitives, vectorised over groups and exact to the byte for each group.

A group is a client, or a client and a dimension. Sums over a group use `numpy.bincount`, which
adds in the order of the rows: a group's result never depends on which other groups are present.
"""
