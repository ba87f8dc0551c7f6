"""The network: configuration, packed batches, embeddings, encoder, heads. Knows no task and no file format."""
