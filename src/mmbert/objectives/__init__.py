"""Objectives: losses on selected states. One module each, found by file name, with ``Options`` and ``compute``."""
