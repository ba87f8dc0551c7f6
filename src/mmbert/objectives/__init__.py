"""Objectives: losses on selected states. One module each, found by file name, with ``Options`` and ``compute``.

``READS`` says which states: ``"positions"`` those of its target's positions, ``"sequences"`` the first of each
sequence. The last layer computes no others. Where it depends on the model, a function ``reads(model, batch, target)``
gives the positions. A module with neither may read any.

``NEEDS`` names parts of the model, ``BESIDE`` another objective of the same component, and ``labels_read(options)``
what labels have to say beside their numbers: without them a run does not begin (:mod:`mmbert.training.needs`).

``plan`` counts the labels before anything is computed, where they are not simply the target's positions; ``GATHERS``
says that the objective reads what other processes have (see :class:`mmbert.objectives.base.Plan`).
"""
