"""The network: its shape, its layers, its memory of generation, and Hugging Face folders."""
