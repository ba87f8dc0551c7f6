"""The front door: a model with its processor, for use from Python."""
