"""What stands behind the published imports and commands; the modules that bear their names hold no logic."""
