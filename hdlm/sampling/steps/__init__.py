"""The steps: ways to walk back from noise, one idea a file."""
