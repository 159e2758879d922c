"""Figures and terminal output of hyperschedules, attention, loss curves and replays, from plain data.

Needs the extra `view` (matplotlib, rich) and no model; files are written completely or not at all.
"""
