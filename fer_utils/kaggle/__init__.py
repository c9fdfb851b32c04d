"""Kaggle: export of the notebooks, and transfer of a run from one notebook to the next."""
