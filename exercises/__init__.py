"""A course about this project: exercises, a bug hunt and class experiments. `python -m exercises` says how it goes."""
