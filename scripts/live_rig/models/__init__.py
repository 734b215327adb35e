"""Makers of the tiny models; each is run as a script by the environment that has torch and transformers."""
