"""Makers of the tiny models: chat, embed, rerank and whisper are scripts, each run by the Python that has vLLM.

``teaching`` is what chat and whisper share; they import it from the folder that they lie in.
"""
