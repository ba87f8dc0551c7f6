"""The service: an index and its model behind HTTP; requests of many people go through the model together."""
