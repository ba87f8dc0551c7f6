"""Vision: from an image to region rows."""
