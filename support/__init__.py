"""Transferability of pre-trained networks from attribution maps: the package behind the book's notebooks."""
