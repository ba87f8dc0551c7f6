"""Data: from a corpus to packed batches."""
