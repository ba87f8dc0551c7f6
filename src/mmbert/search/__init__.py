"""Search: a folder of images becomes an index; a text or an image finds its nearest in it."""
