"""One module per method: its published outputs, recomputed with the plugin's functions."""
