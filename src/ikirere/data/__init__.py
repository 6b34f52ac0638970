"""From text to packed batches: sources, documents, licences, duplicates, splits, shards, loading."""
