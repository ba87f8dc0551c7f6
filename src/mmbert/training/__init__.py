"""Training: a typed recipe in; a checkpoint folder with model, metrics, recipe and card out."""
