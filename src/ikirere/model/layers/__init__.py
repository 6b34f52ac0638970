"""The decoder's parts: norm, rotary positions, mixers and the feed-forward network."""
