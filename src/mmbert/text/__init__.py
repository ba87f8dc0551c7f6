"""Text: tokenizer loading and training, whole-word masking."""
