"""The columnar store: features as sorted Parquet files under one manifest.

Layout, in a local folder or under an ``s3://`` prefix::

    manifest.json                            the only entry; replaced whole
    lead_features/b07-<random>.parquet       never changed once written
    touch_features/b07-<random>.parquet
    touch_features/s-<random>.parquet        of a segment, and the leads it replaces:
    keys/s-<random>.parquet

A client's rows lie in the bucket its id hashes to, so that ten thousand clients are not ten
thousand files, and a change of one client rewrites one bucket. A small change of many clients does
not: it is a segment, rows of some leads that stand in place of all earlier rows of those leads.
Later writes rewrite buckets for which many segments count, some at a time.

A write puts new files beside the old ones and then replaces the manifest: a reader sees the state
before or after it, never a mixture, and a write that dies in between changes nothing. Files that
no manifest of the last two names are collected by a later write.

Where what stands: `manifest` says what a version is, `rows` how rows are ordered and replaced,
`files` where bytes lie, `store` reads a version, `writer` makes the next.
"""
