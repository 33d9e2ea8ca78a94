"""A sweep: every cell composed and checked before the first starts, each run in a process of its own, once.

grid.py makes cells of a command line, plan.py decides which are to be run, pool.py runs them, screen.py shows it.
cell.py is what happens in a cell's process. Hydra meets all this in hydra_plugins/tid_sweeps.
"""
