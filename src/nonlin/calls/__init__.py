"""What ``nonlin`` exports as functions, and the objects that they return: the command line is a thin layer over them.

``comparison`` trains a study and returns a ``study``; ``ladder_comparison`` does so at several sizes and returns a
``ladder``. ``extension`` and ``calibration`` begin from a study's arguments too. ``checkup`` looks inside a model,
``doctor`` at the machine.
"""
