"""The Headless chat protocol, pure: bytes in, events out. No await, no socket, no clock."""
