"""Text to ids and back, and conversations to ids and back. See README.md."""
