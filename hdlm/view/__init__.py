"""Data -> picture: hyperschedules, attention, loss curves and replays, on paper and in the terminal.

Needs the extra `view` (matplotlib, rich).  Knows no model; files appear whole or not at all.
"""
