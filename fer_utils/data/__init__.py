"""The datasets: finding, reading, splitting, auditing for copies, balancing, augmenting and loading them."""
