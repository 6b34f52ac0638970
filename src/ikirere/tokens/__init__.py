"""From documents to training batches: token shards, mixtures, packing, resumable loading."""
