"""The wire types, generated from proto/ by `sdk/python/generate`."""
