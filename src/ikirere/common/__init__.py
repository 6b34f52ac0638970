"""What every package needs once: files written whole, JSON and hashes, intervals, the local mirror."""
