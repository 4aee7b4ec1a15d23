"""What every trained thing shares, once: config, task, optimisers, schedules, EMA, exact resume, checkpoints.

Knows no model. Submodules are imported where they are used; Lightning is loaded by :func:`.fit.fit` alone.
"""
