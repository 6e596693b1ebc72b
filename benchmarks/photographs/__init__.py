"""Does DMLAP help on photographs? A pretrained network whose last stages are trained.

The first stages stay as they are, so what they make of every photograph is computed once::

    python -m benchmarks.photographs prepare --data folder:PATH --weights FILE
    python -m benchmarks.photographs all

`activations` computes and reads them, `settings` says what is tried, `training` makes the runs,
`table` writes what came out.
"""
