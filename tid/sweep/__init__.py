"""A sweep: every cell composed and checked before the first starts, each run in a process of its own, once.

grid.py makes cells of a command line, plan.py decides which are to be run, pool.py runs them, screen.py shows it.
cell.py is what happens in a cell's process. search.py asks Optuna for cells instead: space.py is what it chooses among,
trials.py what became of them. Hydra meets all this in hydra_plugins/tid_sweeps.
"""
