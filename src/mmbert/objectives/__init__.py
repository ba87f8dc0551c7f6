"""Objectives: losses on selected states. One module each, found by file name, with ``Options`` and ``compute``.

``READS`` says which states: ``"positions"`` those of its target's positions, ``"sequences"`` the first of each
sequence. The last layer computes no others. A module without it may read any.
"""
