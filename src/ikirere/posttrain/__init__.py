"""Post-training: generated conversations, supervised fine-tuning, preference optimisation."""
