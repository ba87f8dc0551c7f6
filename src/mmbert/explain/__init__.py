"""Explaining: what the network looks at while it reads an image and a text."""
