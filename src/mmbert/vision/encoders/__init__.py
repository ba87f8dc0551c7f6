"""Vision encoders, one file each, found by file name (``config.vision["kind"]``)."""
