"""The sampling steps, one idea per file."""
