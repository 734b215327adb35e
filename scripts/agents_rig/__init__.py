"""Coding agents and agent SDKs, each in a session through the gateway: see ../agents."""
