"""Synthetic puzzles: grid programs, graphs, sudokus, mazes and program traces, each solved or run before it is
written. No text is taken from anywhere."""
