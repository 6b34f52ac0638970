"""File formats of rows and their compression: one module per format."""
