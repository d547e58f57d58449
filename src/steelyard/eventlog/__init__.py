"""WHAT HAPPENED, in order: the durable outbox of each gateway, and how it is read."""
