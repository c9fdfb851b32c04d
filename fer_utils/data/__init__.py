"""The datasets: found, read, split, audited for copies, balanced, augmented and loaded."""
