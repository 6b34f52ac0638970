"""The corpus build: readers to split, sealed documents, with a ledger of everything that left."""
