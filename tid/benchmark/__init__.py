"""The parts of `python -m tid.bench`: what is timed, how, against what, and how it is shown."""
