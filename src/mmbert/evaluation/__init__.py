"""Evaluation: records and a model go in, figures and pages a person can look at come out."""
