"""The HTTP surface of the gateway, without a framework: every request pays for what stands here."""
