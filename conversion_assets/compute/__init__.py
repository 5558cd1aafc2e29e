"""Where work on shards of clients is done: in this process, or on a cluster that exists."""
