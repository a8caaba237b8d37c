"""Data as programs meet it: arrays of examples, divided among sites."""
