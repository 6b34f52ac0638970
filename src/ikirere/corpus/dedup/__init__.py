"""Duplicates: equal texts and addresses, and near-duplicates verified by their exact Jaccard similarity."""
