"""Implementation of the published imports and commands; the modules with the published names only import from here."""
