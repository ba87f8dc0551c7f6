"""VL-BERT's and MM-BERT's files: their checkpoints and configurations, read and written. Their names live only here."""
