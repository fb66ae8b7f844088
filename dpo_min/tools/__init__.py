"""What stands around the core: the demo's data, pictures. Nothing imports it; it can be deleted."""
