"""The HTTP surface of the gateway: bare ASGI, since every request pays for what stands here."""
