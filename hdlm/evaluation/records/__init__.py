"""Result documents: the protocol that they were measured by, and comparisons of several."""
