"""Pure detectors: feature frames of all clients in, one validated document per client out."""
