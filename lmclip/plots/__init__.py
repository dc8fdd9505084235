"""Figures: one function per figure, one module per notebook, one style for all."""
