"""The active vocabulary inside other people's inference loops, a module for each of them."""
