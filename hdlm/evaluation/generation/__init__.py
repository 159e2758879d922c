"""Measures of generated text, by judges and by counts."""
