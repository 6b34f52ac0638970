"""Document sets as others use them: manifests, mixtures, and snapshots in the layout of the hub."""
