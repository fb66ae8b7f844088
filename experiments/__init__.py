"""What stands around the core: the demo's data, pictures. The core and its tests do without it."""
