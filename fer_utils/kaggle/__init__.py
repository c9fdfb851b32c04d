"""The notebooks on Kaggle: written for upload, and handing a run on from one to the next."""
