"""Vision: images in, regions (boxes and features) out."""
