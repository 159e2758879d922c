"""Result documents: the protocol of each measurement, and comparisons of several documents."""
