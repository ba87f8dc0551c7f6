"""Tasks, one file each, found by file name: what a record looks like to the model, and what is learned from it."""
