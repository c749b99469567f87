"""Shipped hardware profiles: one flat TOML file a device class, read by `edgeml.profile`."""
