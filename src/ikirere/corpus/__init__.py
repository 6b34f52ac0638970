"""From raw text to clean, split documents: readers, steps, deduplication, decontamination, publishing."""
