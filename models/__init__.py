"""Model modules, one file each, imported by name: `build` and `loss`."""
